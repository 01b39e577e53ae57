"""Training compute: from multiply-accumulates to TPU-v4 core-hours."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from nfnets_tf.ranges import accepts, either, mapping, number
from nfnets_tf.scaling import paper_data

# bfloat16 peak of one TensorCore, half of a TPU-v4 chip's 275 TFLOP/s.
TPU_V4_CORE_FLOPS = 137.5e12
_UTILIZATION = number(above=0, most=1)


def training_flops(macs: int, images: float) -> float:
  """Returns the FLOPs of training: 2 per MAC, three forward passes' worth.

  Args:
    macs: of one image's forward pass; the backward pass takes twice that.
    images: number of images to train on, epochs included.
  """
  return 6.0 * macs * images


@accepts(utilization=either(_UTILIZATION, mapping(_UTILIZATION)))
class TpuV4:
  """Predicts the core-hours of a training run on TPU-v4.

  Args:
    utilization: fraction of the peak that training reaches, in (0, 1]; or
      {variant: fraction}, where other variants have the geometric mean of the
      fractions.

  Raises:
    UserError: if it is neither.
  """

  def __init__(self, *, utilization: float | Mapping[str, float]):
    by_variant = isinstance(utilization, Mapping)
    self.utilization = dict(utilization) if by_variant else utilization

  def utilization_of(self, variant: str | None) -> float:
    """Returns the fraction of the peak that training this variant reaches."""
    if not isinstance(self.utilization, dict):
      return self.utilization
    if variant in self.utilization:
      return self.utilization[variant]
    return mean_utilization(self.utilization.values())

  def flops(self, macs: int, images: float) -> float:
    """Returns the FLOPs of training; see `training_flops`."""
    return training_flops(macs, images)

  def core_hours(
    self, macs: int, images: float, variant: str | None = None
  ) -> float:
    """Returns the hours of training on one core.

    Args:
      macs: of one image's forward pass.
      images: number of images to train on, epochs included.
      variant: of the network, for a utilization by variant.
    """
    rate = self.utilization_of(variant) * TPU_V4_CORE_FLOPS
    return training_flops(macs, images) / rate / 3600.0

  def published_core_hours(self, variant: str, epochs: float) -> int | None:
    """Returns the paper's own core-hours on JFT-4B; None if not in figure 2."""
    return _published_hours().get((variant, epochs))


def calibrate(
  points: pd.DataFrame, *, images_per_epoch: float
) -> dict[str, float]:
  """Returns {variant: utilization} implied by measured core-hours.

  Each is the geometric mean over the variant's points.

  Args:
    points: columns model, macs (of one image's forward pass), epochs,
      tpu_v4_core_hours.
    images_per_epoch: number of images.
  """
  implied = _implied_utilization(points, images_per_epoch)
  groups = implied.groupby(points["model"], sort=False)
  return {variant: mean_utilization(group) for variant, group in groups}


def mean_utilization(fractions: Iterable[float]) -> float:
  """Returns the geometric mean, which balances ratios of core-hours."""
  return float(np.exp(np.mean(np.log(list(fractions)))))


def paper_utilization() -> dict[str, float]:
  """Returns {variant: utilization} of the scaling paper's six models.

  From the core-hours of its figure 2 (footnote 2: read "by eye from the typical
  steps per second"): 0.29 for F0 to 0.37 for F7+.
  """
  points = paper_data.heldout_losses()
  return calibrate(points, images_per_epoch=paper_data.JFT_4B_IMAGES)


def predict_core_hours(
  points: pd.DataFrame, *, images_per_epoch: float
) -> pd.DataFrame:
  """Returns measured core-hours next to those predicted from FLOPs.

  Args:
    points: see `calibrate`.
    images_per_epoch: number of images.

  Returns:
    The points' columns model, epochs, tpu_v4_core_hours, and:
      utilization: of this point only.
      by_model, by_model_error: hours by the variant's utilization.
      leave_one_out_error: by the utilization of the variant's other points; NaN
        if there are none.
      by_flops, by_flops_error: hours by the mean utilization of all variants.
    Errors are predicted / measured - 1.
  """
  table = points[["model", "epochs", "tpu_v4_core_hours"]].copy()
  implied = _implied_utilization(points, images_per_epoch)
  by_model = calibrate(points, images_per_epoch=images_per_epoch)
  of_model = points["model"].map(by_model)
  count = points.groupby("model")["epochs"].transform("size")
  # The geometric mean over a variant's points except this one.
  rest = np.exp((count * np.log(of_model) - np.log(implied)) / (count - 1))
  hours = table["tpu_v4_core_hours"]
  table["utilization"] = implied
  table["by_model"] = hours * implied / of_model
  table["by_model_error"] = implied / of_model - 1.0
  table["leave_one_out_error"] = (implied / rest - 1.0).where(count > 1)
  mean = mean_utilization(by_model.values())
  table["by_flops"] = hours * implied / mean
  table["by_flops_error"] = implied / mean - 1.0
  return table


def _implied_utilization(points, images_per_epoch) -> pd.Series:
  images = points["epochs"] * images_per_epoch
  seconds = points["tpu_v4_core_hours"] * 3600.0
  return training_flops(points["macs"], images) / seconds / TPU_V4_CORE_FLOPS


@functools.cache
def _published_hours() -> dict[tuple[str, float], int]:
  points = paper_data.heldout_losses()
  hours = points.set_index(["model", "epochs"])["tpu_v4_core_hours"]
  return hours.to_dict()
