"""Training compute: TPU-v4 core-hours, and what programs compiled for it need.

Core-hours follow from multiply-accumulates. The memory of a step on a chip is
in tpu_v4_programs.csv, which tools/tpu_check writes (docs/tpu.md).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nfnets_tf.models.nfnet import STAGES, NFNet
from nfnets_tf.ranges import accepts, either, mapping, number
from nfnets_tf.scaling import paper_data

if TYPE_CHECKING:
  from nfnets_tf.optim.sam import SAM

# bfloat16 peak of one TensorCore, half of a TPU-v4 chip's 275 TFLOP/s.
TPU_V4_CORE_FLOPS = 137.5e12
# What the compiler lets a program use of a TPU-v4 chip's 32 GiB.
TPU_V4_USABLE_BYTES = round(30.75 * 2**30)
_UTILIZATION = number(above=0, most=1)

PROGRAMS = pathlib.Path(__file__).with_name("tpu_v4_programs.csv")
# What a run decides about its program; see `program_key`.
_KEY_COLUMNS = (
  "network",
  "num_classes",
  "image_size",
  "policy",
  "recompute",
  "optimizer",
  "sam",
  "micro_batches",
  "ema",
  "step",
)
# The columns of the table. Sizes are bytes, and FLOPs those of a step, of one
# chip; analytic_flops count neither recomputation nor anything but products.
PROGRAM_COLUMNS = (
  *_KEY_COLUMNS,
  "slice",  # "v4-256", by its cores: two a chip
  "batch_per_chip",
  "peak_bytes",  # what the compiler says it needs, where it refuses
  "fits",  # 1 or 0
  "argument_bytes",
  "temp_bytes",
  "flops",
  "analytic_flops",
  "bytes_accessed",
  "all_reduces",
  "all_reduce_bytes",
  "compile_seconds",
  "source",  # "compiled" or "extrapolated"
  "compiler",
  "tensorflow",
  "date",
)
# The paper's images a chip, where nothing says which slice to try.
_IMAGES_PER_CHIP = 32
_CHIPS = [2**power for power in range(2, 12)]  # of a slice, up to v4-4096


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

  def describe_program(
    self, network: NFNet, *, batch_size: int, images: int, **options
  ) -> list[str]:
    """Describes a run's step as compiled for TPU-v4, in lines.

    Args:
      network: of the run; it may be of `cost.abstractly`.
      batch_size: of the run.
      images: number of images to train on, epochs included.
      **options: others of `program_key`.
    """
    key = program_key(network, **options)
    programs = find_programs(key, batch_size=batch_size)
    if programs.empty:
      least = min(batch_size // _IMAGES_PER_CHIP, _CHIPS[-1])
      part = _slice(next(chips for chips in _CHIPS if chips >= least))
      command = "python -m tools.tpu_check compile --gin_file=..."
      return [f"not compiled yet; in a clone: {command} --slice={part}"]
    holding = programs[programs["fits"] == 1]
    usable = f"a chip's {_in_gb(TPU_V4_USABLE_BYTES)}"
    if holding.empty:
      best = programs.loc[programs["peak_bytes"].idxmin()]
      return [
        f"{_in_gb(best.peak_bytes)} on {_slice(best.chips)}, more than"
        f" {usable}; bind nfnet.NFNet.recompute = True or"
        " classifier.Classifier.micro_batches, or take a larger slice"
        f" ({_origin(best)})"
      ]
    best = holding.loc[holding["chips"].idxmin()]
    flops = best.flops / best.batch_per_chip * images
    utilization = self.utilization_of("F0")
    hours = flops / (utilization * TPU_V4_CORE_FLOPS) / 3600.0
    return [
      f"{_in_gb(best.peak_bytes)} of {usable} on {_slice(best.chips)}, the"
      f" smallest slice tried that holds it ({best.batch_per_chip} images a"
      f" chip; {_origin(best)})",
      f"{hours:,.0f} TPU-v4 core-hours by these FLOPs at the"
      f" {utilization:.0%} that F0 reaches",
    ]


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
      by_smallest, by_smallest_error: hours by the utilization of the variant of
        fewest multiply-accumulates alone: a prediction for all others.
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
  smallest = by_model[points["model"][points["macs"].idxmin()]]
  table["by_smallest"] = hours * implied / smallest
  table["by_smallest_error"] = implied / smallest - 1.0
  return table


def program_key(
  network: NFNet,
  *,
  image_size: int,
  policy: str,
  optimizer: str,
  sam: SAM | None,
  micro_batches: int,
  ema_decay: float | None,
  step: str = "train",
) -> dict[str, str | int]:
  """Returns {column of the table: value} of what a run decides.

  Args:
    network: may be of `cost.abstractly`.
    image_size: of the step's images, in pixels.
    policy: Keras' precision policy.
    optimizer: name of its class.
    sam: of the training step, or None.
    micro_batches: of the classifier.
    ema_decay: of the classifier.
    step: "train" or "eval".
  """
  config = network.get_config()
  rule, recompute = config["bottleneck_rule"], config["recompute"]
  values = (
    config["variant"] + (f" {rule}" if rule != "released" else ""),
    config["num_classes"],
    image_size,
    policy,
    {(): "none", STAGES: "all"}.get(recompute, "+".join(recompute)),
    optimizer,
    _sam_in_words(sam),
    micro_batches,
    int(ema_decay is not None),
    step,
  )
  return dict(zip(_KEY_COLUMNS, values))


def _sam_in_words(sam: SAM | None) -> str:
  if sam is None:
    return "none"
  words = [sam.scope]
  if sam.ascent_fraction != 1:
    words.append(f"ascent={sam.ascent_fraction:g}")
  if sam.every != 1:
    words.append(f"every={sam.every}")
  return " ".join(words)


def find_programs(
  key: Mapping[str, str | int], *, batch_size: int
) -> pd.DataFrame:
  """Returns the programs of a run, on whatever slice holds its batch.

  A chip's memory follows from its images, and not from the number of chips: a
  program that was compiled for a small slice counts for a large one.

  Args:
    key: of `program_key`.
    batch_size: of the run, on all chips together.

  Returns:
    The columns `PROGRAM_COLUMNS`, and chips: how many the batch takes.
  """
  table = compiled_programs()
  table["chips"] = batch_size // table["batch_per_chip"]
  same = table["chips"] * table["batch_per_chip"] == batch_size
  same &= table["chips"].isin(_CHIPS)
  for name, value in key.items():
    same &= table[name] == value
  return table[same]


def compiled_programs() -> pd.DataFrame:
  """Returns the package's table of compiled programs; `PROGRAM_COLUMNS`."""
  # "none" is a word, and no missing value.
  return pd.read_csv(PROGRAMS, keep_default_na=False, na_values=[""])


def _slice(chips: int) -> str:
  """Returns the name of a slice, which counts cores."""
  return f"v4-{2 * chips}"


def _in_gb(count: float) -> str:
  return f"{count / 1e9:.1f} GB"


def _origin(program: pd.Series) -> str:
  how = f"{program.source} {program.date} for {program.slice}"
  return f"{how} with {program.compiler}"


def _implied_utilization(points, images_per_epoch) -> pd.Series:
  images = points["epochs"] * images_per_epoch
  seconds = points["tpu_v4_core_hours"] * 3600.0
  return training_flops(points["macs"], images) / seconds / TPU_V4_CORE_FLOPS


@functools.cache
def _published_hours() -> dict[tuple[str, float], int]:
  points = paper_data.heldout_losses()
  hours = points.set_index(["model", "epochs"])["tpu_v4_core_hours"]
  return hours.to_dict()
