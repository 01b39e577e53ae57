"""The law of loss and compute, its intervals, and how well it predicts.

Two forms, both fitted by least squares to log loss:

  L = a C^-b         a straight line on log-log axes (section 2 of the scaling
                     paper: "a clear linear trend")
  L = a C^-b + c     that bends towards an irreducible loss c >= 0

Nothing here raises for too few points: a fit is then None, so that a report can
be made of a study that has just begun.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

_PERCENTILES = (2.5, 97.5)
_STARTS = (0.0, 0.3, 0.6, 0.8, 0.95, 0.999)  # c as a share of the lowest loss
_STEEPEST = 5.0  # b of the law with offset
_NOTHING = 1e-8


@dataclasses.dataclass(frozen=True)
class Law:
  """L = a C^-b + c, where c is 0 for the law without offset.

  Attributes:
    a: loss above c at a compute of 1.
    b: exponent of compute.
    c: loss that no compute removes.
    has_offset: whether c was fitted.
    points: number of points of the fit.
    rms: root of the mean squared residual of log loss.
    r2: share of the variance of log loss that the law explains; not a number
      if the losses are equal.
    draws: (a, b, c) of each resample of the bootstrap, or empty.
  """

  a: float
  b: float
  c: float
  has_offset: bool
  points: int
  rms: float
  r2: float
  draws: tuple[tuple[float, float, float], ...] = ()

  def predict(self, compute: Sequence[float]) -> np.ndarray:
    """Returns the losses [n] at some computes [n]."""
    return self.a * np.asarray(compute, float) ** -self.b + self.c

  def interval(self, coefficient: str) -> tuple[float, float] | None:
    """Returns the central 95 % of the draws of "a", "b" or "c", if any."""
    if not self.draws:
      return None
    return central_interval(np.array(self.draws)[:, "abc".index(coefficient)])

  def band(self, compute: Sequence[float]) -> np.ndarray | None:
    """Returns the central 95 % [2, n] of the draws' losses, if any."""
    if not self.draws:
      return None
    a, b, c = np.array(self.draws).T[..., None]
    losses = a * np.asarray(compute, float) ** -b + c
    return np.percentile(losses, _PERCENTILES, axis=0)

  def describe(self) -> str:
    """Returns the law with its coefficients and their intervals."""
    text = f"L = {self.a:.4g} C^-{self.b:.4g}"
    names = "ab"
    if self.has_offset:
      text, names = f"{text} + {self.c:.4g}", "abc"
    if not self.draws:
      return text
    ranges = (
      f"{name} {'{:.3g} to {:.3g}'.format(*self.interval(name))}"
      for name in names
    )
    return f"{text} ({', '.join(ranges)})"

  def to_json(self) -> dict:
    """Returns what a file tells: values, intervals and how good the fit is."""
    names = "abc" if self.has_offset else "ab"
    return {
      "form": "L = a C^-b + c" if self.has_offset else "L = a C^-b",
      **{
        name: {"value": getattr(self, name), "interval": self.interval(name)}
        for name in names
      },
      "points": self.points,
      "rms_log_residual": self.rms,
      "r2": None if np.isnan(self.r2) else self.r2,
      "resamples": len(self.draws),
    }


def central_interval(draws: Sequence[float]) -> tuple[float, float]:
  """Returns the percentiles between which 95 % of the draws lie."""
  return tuple(np.percentile(draws, _PERCENTILES).tolist())


def fit_power_law(
  compute: Sequence[float], loss: Sequence[float], *, needed: int = 3
) -> Law | None:
  """Fits L = a C^-b.

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
    needed: number of different computes below which there is no fit.

  Returns:
    The law, or None if there are too few points.
  """
  compute, loss = np.asarray(compute, float), np.asarray(loss, float)
  if len(np.unique(compute)) < max(2, needed):
    return None
  a, b = _line(compute, loss)
  return _judge(a, b, 0.0, False, compute, loss)


def fit_offset_law(
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  needed: int = 4,
  starts: Sequence[float] = _STARTS,
) -> Law | None:
  """Fits L = a C^-b + c, c >= 0, from several starts.

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
    needed: see `fit_power_law`.
    starts: values of c to start from, as shares of the lowest loss.

  Returns:
    The law, or None if there are too few points.
  """
  compute, loss = np.asarray(compute, float), np.asarray(loss, float)
  if len(np.unique(compute)) < max(3, needed):
    return None
  middle = np.exp(
    np.log(compute).mean()
  )  # a and b are all but independent there
  scaled, lowest = np.log(compute / middle), loss.min()

  def residuals(p):
    return np.log(np.exp(p[0] - p[1] * scaled) + p[2]) - np.log(loss)

  def descend(start):
    a, b = _line(compute / middle, loss - start * lowest)
    return optimize.least_squares(
      residuals,
      [np.log(a), np.clip(b, 1e-6, _STEEPEST), start * lowest],
      bounds=([-np.inf, 0.0, 0.0], [np.inf, _STEEPEST, lowest]),
      xtol=1e-12,
      ftol=1e-12,
      gtol=1e-12,
    )

  found = min(map(descend, starts), key=lambda result: result.cost)
  log_a, b, c = found.x.tolist()
  c = 0.0 if c < _NOTHING * lowest else c  # the bound is met from inside
  a = float(np.exp(log_a) * middle**b)
  return _judge(a, b, c, True, compute, loss)


def bootstrap(
  law: Law | None,
  compute: Sequence[float],
  loss: Sequence[float],
  *,
  resamples: int,
  seed: int,
) -> Law | None:
  """Returns a law with draws, from points resampled with replacement.

  Args:
    law: of these points, or None, which is returned as it is.
    compute: [n].
    loss: [n].
    resamples: number of draws; a resample of too few different points is drawn
      again.
    seed: of the resamples.
  """
  if law is None:
    return None
  compute, loss = np.asarray(compute, float), np.asarray(loss, float)
  generator, draws = np.random.default_rng(seed), []
  fit = _refit(law, loss)
  while len(draws) < resamples:
    chosen = generator.integers(0, len(loss), len(loss))
    drawn = fit(compute[chosen], loss[chosen])
    if drawn is not None:
      draws.append((drawn.a, drawn.b, drawn.c))
  return dataclasses.replace(law, draws=tuple(draws))


def _refit(law, loss) -> Callable:
  """A resample may hold as few points as there are coefficients."""
  if not law.has_offset:
    return lambda x, y: fit_power_law(x, y, needed=2)
  starts = (0.0, min(law.c / loss.min(), 0.999), 0.8)
  return lambda x, y: fit_offset_law(x, y, needed=3, starts=starts)


def _line(compute, loss) -> tuple[float, float]:
  """Returns (a, b) of the straight line through log loss."""
  slope, intercept = np.polyfit(np.log(compute), np.log(loss), 1)
  return float(np.exp(intercept)), float(-slope)


def _judge(a, b, c, has_offset, compute, loss) -> Law:
  law = Law(a, b, c, has_offset, len(loss), np.nan, np.nan)
  squares = np.mean(np.log(law.predict(compute) / loss) ** 2)
  spread = np.var(np.log(loss))
  return dataclasses.replace(
    law,
    rms=float(np.sqrt(squares)),
    r2=float(1.0 - squares / spread) if np.ptp(loss) > 0 else float("nan"),
  )
