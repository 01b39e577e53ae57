"""From multiply-accumulates to TPU-v4 core-hours."""

from __future__ import annotations

# bfloat16 peak of one TensorCore, half of a TPU-v4 chip's 275 TFLOP/s.
TPU_V4_CORE_FLOPS = 137.5e12

# TPU-v4 core-hours by epochs of JFT-4B: the points of figure 2 of "ConvNets
# Match Vision Transformers at Scale" (arXiv 2310.16764), digitized to about
# 1.5 %. The paper read its compute by eye from typical steps per second.
FIGURE_2_CORE_HOURS = {
  "F0": {0.25: 401, 0.5: 801, 1: 1608, 2: 3197, 4: 6505, 8: 12945},
  "F1": {0.25: 703, 0.5: 1300, 1: 2702, 2: 5415, 4: 10860, 8: 21300},
  "F3": {0.25: 1205, 0.5: 2404, 1: 4890, 2: 9816, 4: 19590, 8: 38870},
  "F3+": {0.25: 1807, 0.5: 3497, 1: 7012, 2: 14101, 4: 28200, 8: 56150},
  "F7": {0.25: 2410, 0.5: 4800, 1: 9620, 2: 19260, 4: 38290, 8: 76200},
  "F7+": {0.25: 3307, 0.5: 6694, 1: 13399, 2: 26706, 4: 53540, 8: 106600},
}


def training_flops(macs: int, images: float) -> float:
  """FLOPs of training on `images`: 2 a MAC, forward and twice that backward."""
  return 6.0 * macs * images


class TpuV4:
  """Predicts the core-hours of a training run on TPU-v4.

  Args:
    utilisation: share of the peak that training reaches, in (0, 1].
  """

  def __init__(self, *, utilisation: float):
    self.utilisation = utilisation

  def core_hours(self, macs: int, images: float) -> float:
    """Returns the hours that one core would train for.

    Args:
      macs: of one image's forward pass.
      images: number of images to train on, epochs included.
    """
    rate = self.utilisation * TPU_V4_CORE_FLOPS
    return training_flops(macs, images) / rate / 3600.0

  def published_core_hours(self, variant: str, epochs: float) -> float | None:
    """Returns the paper's own core-hours on JFT-4B, if it has this point."""
    return FIGURE_2_CORE_HOURS.get(variant, {}).get(epochs)
