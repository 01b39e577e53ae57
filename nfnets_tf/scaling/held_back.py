"""A law is fitted to cheap points and predicts the expensive ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nfnets_tf.scaling import laws
from nfnets_tf.scaling.laws import Law


@dataclasses.dataclass(frozen=True)
class HeldBack:
  """What laws say of points that they have not seen.

  Attributes:
    threshold: compute from which on points were held back.
    fitted_points: number of points below it.
    compute: of the points held back.
    loss: of the same.
    power: the law without offset out of the points below, or None if they are
      too few.
    offset: the law with offset, or None.
  """

  threshold: float
  fitted_points: int
  compute: tuple[float, ...]
  loss: tuple[float, ...]
  power: Law | None
  offset: Law | None

  def errors(self, law: Law | None) -> np.ndarray | None:
    """Returns predicted / measured - 1 of each point [n], if there is a law."""
    if law is None:
      return None
    return law.predict(self.compute) / np.array(self.loss) - 1.0

  def describe(self, law: Law | None) -> str:
    """Returns the largest and the last error, in words."""
    if law is None:
      return "not enough points below"
    if not self.compute:
      return "no points above"
    errors = self.errors(law)
    return (
      f"{np.abs(errors).max():.2%} at most of {len(errors)} points,"
      f" {errors[-1]:+.2%} at the largest compute"
    )

  def to_json(self) -> dict:
    """Returns the laws, and every point beside its predictions."""
    points = [
      {"compute": x, "loss": y} for x, y in zip(self.compute, self.loss)
    ]
    kinds = {"power_law": self.power, "offset_law": self.offset}
    for kind, law in kinds.items():
      if law is None:
        continue
      predictions, errors = law.predict(self.compute), self.errors(law)
      for point, prediction, error in zip(points, predictions, errors):
        point[kind] = {"predicted": float(prediction), "error": float(error)}
    return {
      "held_back_from": self.threshold,
      "fitted_points": self.fitted_points,
      **{kind: law and law.to_json() for kind, law in kinds.items()},
      "points": points,
    }


def predict_held_back(
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  threshold: float | None,
  resamples: int,
  seed: int,
) -> HeldBack:
  """Fits both laws below a compute; the points from there on are held back.

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
    threshold: a compute; None is the geometric mean of the least and the most.
    resamples: see `laws.bootstrap`.
    seed: see `laws.bootstrap`.
  """
  order = np.argsort(compute, kind="stable")
  compute = np.asarray(compute, float)[order]
  loss = np.asarray(loss, float)[order]
  if threshold is None:
    ends = compute[:1].tolist() + compute[-1:].tolist()
    threshold = float(np.sqrt(np.prod(ends)))
  low = compute < threshold

  def fit(kind):
    law = kind(compute[low], loss[low])
    return laws.bootstrap(
      law, compute[low], loss[low], resamples=resamples, seed=seed
    )

  return HeldBack(
    threshold=float(threshold),
    fitted_points=int(low.sum()),
    compute=tuple(compute[~low].tolist()),
    loss=tuple(loss[~low].tolist()),
    power=fit(laws.fit_power_law),
    offset=fit(laws.fit_offset_law),
  )
