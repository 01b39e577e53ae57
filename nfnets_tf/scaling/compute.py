"""From multiply-accumulates to TPU-v4 core-hours."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import paper_points

# bfloat16 peak of one TensorCore, half of a TPU-v4 chip's 275 TFLOP/s.
TPU_V4_CORE_FLOPS = 137.5e12


def training_flops(macs: int, images: float) -> float:
  """FLOPs of training on `images`: 2 a MAC, forward and twice that backward."""
  return 6.0 * macs * images


class TpuV4:
  """Predicts the core-hours of a training run on TPU-v4.

  Args:
    utilisation: share of the peak that training reaches, in (0, 1]; or
      {variant: share}, where variants that it lacks have the geometric mean of
      the shares.

  Raises:
    UserError: if it is neither.
  """

  def __init__(self, *, utilisation: float | Mapping[str, float]):
    table = isinstance(utilisation, Mapping)
    shares = list(utilisation.values()) if table else [utilisation]
    if not shares or not all(map(_is_share, shares)):
      raise UserError(
        f"TpuV4.utilisation = {utilisation!r} cannot be used; bind it to a"
        " share of the peak above 0 and up to 1, or to {variant: share}."
      )
    self.utilisation = dict(utilisation) if table else utilisation

  def utilisation_of(self, variant: str | None) -> float:
    """Returns the share of the peak that training this variant reaches."""
    if not isinstance(self.utilisation, dict):
      return self.utilisation
    if variant in self.utilisation:
      return self.utilisation[variant]
    return mean_utilisation(self.utilisation.values())

  def flops(self, macs: int, images: float) -> float:
    """Returns the FLOPs of training; see `training_flops`."""
    return training_flops(macs, images)

  def core_hours(
    self, macs: int, images: float, variant: str | None = None
  ) -> float:
    """Returns the hours that one core would train for.

    Args:
      macs: of one image's forward pass.
      images: number of images to train on, epochs included.
      variant: of the network, where the utilisation is known by variant.
    """
    rate = self.utilisation_of(variant) * TPU_V4_CORE_FLOPS
    return training_flops(macs, images) / rate / 3600.0

  def published_core_hours(self, variant: str, epochs: float) -> int | None:
    """Returns the paper's own core-hours on JFT-4B, if it has this point."""
    return _published_hours().get((variant, epochs))


def calibrate(
  points: pd.DataFrame, macs: Mapping[str, int], *, images_per_epoch: float
) -> dict[str, float]:
  """Returns {variant: share of the peak} that measured core-hours mean.

  Each is the geometric mean over the variant's points.

  Args:
    points: columns model, epochs, tpu_v4_core_hours.
    macs: {variant: of one image's forward pass}.
    images_per_epoch: number of images.

  Raises:
    UserError: if `macs` lacks a variant.
  """
  shares = _implied_utilisation(points, macs, images_per_epoch)
  groups = shares.groupby(points["model"], sort=False)
  return {variant: mean_utilisation(group) for variant, group in groups}


def mean_utilisation(shares: Iterable[float]) -> float:
  """Returns the geometric mean: the errors of hours then cancel as ratios."""
  return float(np.exp(np.mean(np.log(list(shares)))))


def paper_utilisation() -> dict[str, float]:
  """Returns {variant: share of the peak} of the scaling paper's six models.

  Out of the hours of its figure 2 (footnote 2: read "by eye from the typical
  steps per second"): 0.29 for F0 to 0.37 for F7+.
  """
  return calibrate(
    paper_points.heldout_losses(),
    paper_macs(),
    images_per_epoch=paper_points.JFT_4B_IMAGES,
  )


def paper_macs() -> dict[str, int]:
  """Returns {variant: MACs at 224 px} of the scaling paper's six models."""
  models = paper_points.models()
  return dict(zip(models["model"], models["macs"].tolist()))


def predict_core_hours(
  points: pd.DataFrame, macs: Mapping[str, int], *, images_per_epoch: float
) -> pd.DataFrame:
  """Returns measured core-hours beside those that FLOPs predict.

  Args:
    points: see `calibrate`.
    macs: see `calibrate`.
    images_per_epoch: number of images.

  Returns:
    The points' columns model, epochs, tpu_v4_core_hours, and `utilisation`,
    that of the point by itself; `by_model`, hours by the utilisation of the
    variant, and `by_model_error`; `left_out_error`, with the utilisation out of
    the variant's other points, not a number if it has none; `by_flops`, hours
    by the mean utilisation of all variants, and `by_flops_error`. Errors are
    predicted / measured - 1.

  Raises:
    UserError: if `macs` lacks a variant.
  """
  table = points[["model", "epochs", "tpu_v4_core_hours"]].copy()
  shares = _implied_utilisation(points, macs, images_per_epoch)
  of_model = calibrate(points, macs, images_per_epoch=images_per_epoch)
  own = points["model"].map(of_model)
  count = points.groupby("model")["epochs"].transform("size")
  # The geometric mean over a variant's points without this one.
  others = np.exp((count * np.log(own) - np.log(shares)) / (count - 1))
  hours = table["tpu_v4_core_hours"]
  table["utilisation"] = shares
  table["by_model"] = hours * shares / own
  table["by_model_error"] = shares / own - 1.0
  table["left_out_error"] = (shares / others - 1.0).where(count > 1)
  mean = mean_utilisation(of_model.values())
  table["by_flops"] = hours * shares / mean
  table["by_flops_error"] = shares / mean - 1.0
  return table


def _implied_utilisation(points, macs, images_per_epoch) -> pd.Series:
  if missing := sorted(set(points["model"]) - set(macs)):
    raise UserError(
      f"the MACs of {', '.join(missing)} are not known, only those of"
      f" {', '.join(macs)}; give them, or leave out the points."
    )
  images = points["epochs"] * images_per_epoch
  flops = training_flops(points["model"].map(macs), images)
  seconds = points["tpu_v4_core_hours"] * 3600.0
  return flops / seconds / TPU_V4_CORE_FLOPS


@functools.cache
def _published_hours() -> dict[tuple[str, float], int]:
  points = paper_points.heldout_losses()
  keys = zip(points["model"], points["epochs"])
  return dict(zip(keys, points["tpu_v4_core_hours"].tolist()))


def _is_share(value) -> bool:
  return isinstance(value, (int, float)) and 0 < value <= 1
