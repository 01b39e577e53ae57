"""Power laws of loss against compute: fits, bootstrap and extrapolation.

Two forms, both fitted by least squares to the log of the loss:

  L = a C^-b         a straight line on log-log axes (scaling paper, section 2:
                     "a clear linear trend")
  L = a C^-b + c     that bends toward an irreducible loss c >= 0

Too few points raise nothing: the fit is None, so that a study can be reported
from its first point on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy import optimize

from nfnets_tf.scaling.outliers import law_outliers

LOGGER = logging.getLogger("nfnets_tf")

_PERCENTILES = (2.5, 97.5)
_OFFSET_STARTS = (0.0, 0.3, 0.6, 0.8, 0.95, 0.999)  # c / lowest loss
_MAX_EXPONENT = 5.0  # of the law with offset
_ZERO_OFFSET = 1e-8  # c / lowest loss
POOR_FIT = 0.15  # rms of log loss; the paper's law has 0.007

_Sample = TypeVar("_Sample")


@dataclasses.dataclass(frozen=True)
class Law:
  """L = a C^-b + c, where c is 0 for the law without offset.

  Attributes:
    a: loss above c at a compute of 1.
    b: exponent of compute.
    c: irreducible loss, in the unit of the losses.
    has_offset: whether c was fitted.
    points: number of fitted points.
    rms: root mean squared residual of log loss.
    r2: fraction of the variance of log loss that the law explains; NaN if the
      losses are equal.
    bootstrap_samples: (a, b, c) of each bootstrap resample, or empty.
  """

  a: float
  b: float
  c: float
  has_offset: bool
  points: int
  rms: float
  r2: float
  bootstrap_samples: tuple[tuple[float, float, float], ...] = ()

  def predict(self, compute: Sequence[float]) -> np.ndarray:
    """Returns the losses [n] at computes [n]."""
    return self.a * np.asarray(compute, float) ** -self.b + self.c

  def interval(self, coefficient: str) -> tuple[float, float] | None:
    """Returns the central 95 % of "a", "b" or "c"; None without samples."""
    if not self.bootstrap_samples:
      return None
    samples = np.array(self.bootstrap_samples)
    return central_interval(samples[:, "abc".index(coefficient)])

  def band(self, compute: Sequence[float]) -> np.ndarray | None:
    """Returns the central 95 % [2, n] of the loss at computes [n], if known."""
    if not self.bootstrap_samples:
      return None
    a, b, c = np.array(self.bootstrap_samples).T[..., None]
    losses = a * np.asarray(compute, float) ** -b + c
    return np.percentile(losses, _PERCENTILES, axis=0)

  def describe(self) -> str:
    """Returns the law with its coefficients and their intervals."""
    text = f"L = {self.a:.4g} C^-{self.b:.4g}"
    if self.has_offset:
      text += f" + {self.c:.4g}"
    if not self.bootstrap_samples:
      return text
    ranges = (
      f"{name} {'{:.3g} to {:.3g}'.format(*self.interval(name))}"
      for name in self._coefficients
    )
    return f"{text} ({', '.join(ranges)})"

  def to_json(self) -> dict:
    """Returns coefficients, intervals and the quality of the fit."""
    return {
      "form": "L = a C^-b + c" if self.has_offset else "L = a C^-b",
      **{
        name: {"value": getattr(self, name), "interval": self.interval(name)}
        for name in self._coefficients
      },
      "points": self.points,
      "rms_log_residual": self.rms,
      "r2": None if np.isnan(self.r2) else self.r2,
      "resamples": len(self.bootstrap_samples),
    }

  @property
  def _coefficients(self) -> str:
    return "abc" if self.has_offset else "ab"


def central_interval(samples: Sequence[float]) -> tuple[float, float]:
  """Returns the percentiles that enclose 95 % of the samples [n]."""
  return tuple(np.percentile(samples, _PERCENTILES).tolist())


def describe_estimate(value: float, samples: Sequence[float]) -> dict:
  """Returns a value and the interval of its bootstrap samples, for JSON."""
  interval = central_interval(samples) if len(samples) else None
  return {"value": value, "interval": interval}


def bootstrap(
  fit: Callable[[np.ndarray], _Sample | None],
  points: int,
  *,
  resamples: int,
  seed: int,
  redraw: bool = True,
) -> tuple[_Sample, ...]:
  """Fits resamples of the points, drawn with replacement.

  Args:
    fit: from the indices [points] of a resample to its fit; None if the
      resample cannot be fitted.
    points: number of points.
    resamples: number of resamples.
    seed: of the random numbers.
    redraw: whether a resample that cannot be fitted is drawn again, which
      needs that some can; otherwise it is dropped.

  Returns:
    The fits, in the order drawn; without `redraw` possibly fewer than
    `resamples`.
  """
  generator, samples, drawn = np.random.default_rng(seed), [], 0
  while len(samples) < resamples and (redraw or drawn < resamples):
    sample = fit(generator.integers(0, points, points))
    drawn += 1
    if sample is not None:
      samples.append(sample)
  return tuple(samples)


def fit_power_law(
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  min_points: int = 3,
  warn: bool = True,
) -> Law | None:
  """Fits L = a C^-b to all points.

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
    min_points: number of different computes that a fit needs, at least 2.
    warn: whether to log a warning that names outliers, or that the law misses
      its points.

  Returns:
    The law, or None if there are too few points.
  """
  compute, loss = np.asarray(compute, float), np.asarray(loss, float)
  if len(np.unique(compute)) < max(2, min_points):
    return None
  a, b = _fit_line(compute, loss)
  law = _make_law(a, b, 0.0, False, compute, loss)
  if warn:
    _warn(law, compute, loss)
  return law


def fit_offset_law(
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  min_points: int = 4,
  starts: Sequence[float] = _OFFSET_STARTS,
  warn: bool = True,
) -> Law | None:
  """Fits L = a C^-b + c, c >= 0, to all points, from several starts.

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
    min_points: number of different computes that a fit needs, at least 3.
    starts: initial values of c, as fractions of the lowest loss.
    warn: see `fit_power_law`.

  Returns:
    The law, or None if there are too few points.
  """
  compute, loss = np.asarray(compute, float), np.asarray(loss, float)
  if len(np.unique(compute)) < max(3, min_points):
    return None
  # a and b are nearly uncorrelated at the geometric mean of the computes.
  center = np.exp(np.log(compute).mean())
  log_compute, lowest = np.log(compute / center), loss.min()

  def residuals(p):
    return np.log(np.exp(p[0] - p[1] * log_compute) + p[2]) - np.log(loss)

  def descend(start):
    a, b = _fit_line(compute / center, loss - start * lowest)
    return optimize.least_squares(
      residuals,
      [np.log(a), np.clip(b, 1e-6, _MAX_EXPONENT), start * lowest],
      bounds=([-np.inf, 0.0, 0.0], [np.inf, _MAX_EXPONENT, lowest]),
      xtol=1e-12,
      ftol=1e-12,
      gtol=1e-12,
    )

  best = min(map(descend, starts), key=lambda result: result.cost)
  log_a, b, c = best.x.tolist()
  # The solver stays strictly inside its bounds, so c = 0 is never reached.
  c = 0.0 if c < _ZERO_OFFSET * lowest else c
  a = float(np.exp(log_a) * center**b)
  law = _make_law(a, b, c, True, compute, loss)
  if warn:
    _warn(law, compute, loss)
  return law


def _warn(law: Law, compute: np.ndarray, loss: np.ndarray) -> None:
  chosen = law_outliers(compute, loss)
  points = [
    f"{y:.4g} at {x:.4g}" for x, y in zip(compute[chosen], loss[chosen])
  ]
  text = "correct or drop the points that contradict all others: loss"
  text = f"{text} {', '.join(points)}."
  if not points:
    text = "expected losses that lie on one curve."
  if points or law.rms > POOR_FIT:
    miss = np.expm1(law.rms)
    LOGGER.warning(
      "%s misses by %.0f%% (rms); %s", law.describe(), 100 * miss, text
    )


def bootstrap_law(
  law: Law | None,
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  resamples: int,
  seed: int,
) -> Law | None:
  """Returns a law with bootstrap samples.

  Args:
    law: the fit to these points; None is returned as it is.
    compute: [n].
    loss: [n].
    resamples: number of samples; a resample of too few different points is
      drawn again.
    seed: of the resamples.
  """
  if law is None:
    return None
  compute, loss = np.asarray(compute, float), np.asarray(loss, float)
  # A resample may hold as few points as there are coefficients, and starts
  # from the law's own offset, which saves half of the descents.
  starts = (0.0, min(law.c / loss.min(), 0.999), 0.8)

  def fit(chosen):
    x, y = compute[chosen], loss[chosen]
    if law.has_offset:
      sample = fit_offset_law(x, y, min_points=3, starts=starts, warn=False)
    else:
      sample = fit_power_law(x, y, min_points=2, warn=False)
    return sample and (sample.a, sample.b, sample.c)

  samples = bootstrap(fit, len(loss), resamples=resamples, seed=seed)
  return dataclasses.replace(law, bootstrap_samples=samples)


def _fit_line(compute, loss) -> tuple[float, float]:
  """Returns (a, b) of the least-squares line through log loss."""
  slope, intercept = np.polyfit(np.log(compute), np.log(loss), 1)
  return float(np.exp(intercept)), float(-slope)


def _make_law(a, b, c, has_offset, compute, loss) -> Law:
  squares = np.mean(np.log((a * compute**-b + c) / loss) ** 2)
  variance = np.var(np.log(loss))
  r2 = float(1.0 - squares / variance) if np.ptp(loss) > 0 else float("nan")
  return Law(a, b, c, has_offset, len(loss), float(np.sqrt(squares)), r2)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """Predictions of expensive points by laws fitted to the cheap ones.

  Attributes:
    threshold: compute at and above which points were not fitted.
    fitted_points: number of points below it.
    compute: of the predicted points, ascending.
    loss: measured at the predicted points.
    power: L = a C^-b of the points below, None if there are too few.
    offset: L = a C^-b + c of the points below, None if there are too few.
  """

  threshold: float
  fitted_points: int
  compute: tuple[float, ...]
  loss: tuple[float, ...]
  power: Law | None
  offset: Law | None

  def errors(self, law: Law | None) -> np.ndarray | None:
    """Returns predicted / measured - 1 of each point [n]; None for no law."""
    if law is None:
      return None
    return law.predict(self.compute) / np.array(self.loss) - 1.0

  def describe(self, law: Law | None) -> str:
    """Returns the largest error and that at the largest compute, in words."""
    if law is None:
      return "not enough points below the threshold"
    if not self.compute:
      return "no points above the threshold"
    errors = self.errors(law)
    return (
      f"errors up to {np.abs(errors).max():.2%} at {len(errors)} points,"
      f" {errors[-1]:+.2%} at the largest compute"
    )

  def to_json(self) -> dict:
    """Returns the laws, and each predicted point with its errors."""
    points = [
      {"compute": x, "loss": y} for x, y in zip(self.compute, self.loss)
    ]
    laws = {"power_law": self.power, "offset_law": self.offset}
    for name, law in laws.items():
      if law is None:
        continue
      predictions, errors = law.predict(self.compute), self.errors(law)
      for point, prediction, error in zip(points, predictions, errors):
        point[name] = {"predicted": float(prediction), "error": float(error)}
    return {
      "threshold": self.threshold,
      "fitted_points": self.fitted_points,
      **{name: law and law.to_json() for name, law in laws.items()},
      "points": points,
    }


def extrapolate(
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  threshold: float | None,
  resamples: int,
  seed: int,
) -> Extrapolation:
  """Fits both laws below a compute and predicts the points above.

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
    threshold: a compute; None is the geometric mean of the lowest and the
      highest.
    resamples: see `bootstrap_law`.
    seed: see `bootstrap_law`.
  """
  order = np.argsort(compute, kind="stable")
  compute = np.asarray(compute, float)[order]
  loss = np.asarray(loss, float)[order]
  if threshold is None:
    ends = compute[:1].tolist() + compute[-1:].tolist()
    threshold = float(np.sqrt(np.prod(ends)))
  low = compute < threshold

  def fit(kind):
    law = kind(compute[low], loss[low], warn=False)
    return bootstrap_law(
      law, compute[low], loss[low], resamples=resamples, seed=seed
    )

  return Extrapolation(
    threshold=float(threshold),
    fitted_points=int(low.sum()),
    compute=tuple(compute[~low].tolist()),
    loss=tuple(loss[~low].tolist()),
    power=fit(fit_power_law),
    offset=fit(fit_offset_law),
  )
