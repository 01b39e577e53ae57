"""Loss as a surface over model size and epochs: L = c + A N^-u + B E^-v.

A second way to the exponents of `frontier`, from all points at once: where an
epoch takes a compute of C / E ~ N^s, the lowest loss at a compute C has

  N ~ C^p, p = v / (u + s v)   and   E ~ C^q, q = u / (u + s v).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
from scipy import optimize

from nfnets_tf.scaling.laws import central_interval

_LEAST_POINTS = 8  # five coefficients and some to judge them by
_STEEPEST = 3.0
_SHARES = (0.0, 0.4, 0.8)  # c to start from, of the lowest loss
_SLOPES = (0.2, 0.5)  # u and v to start from
_EXPONENTS = ("size_exponent", "epochs_exponent", "epochs_minus_size")


@dataclasses.dataclass(frozen=True)
class Surface:
  """L = c + A (N / N0)^-u + B E^-v, N0 the geometric mean of the sizes.

  Attributes:
    floor: c.
    of_size: A, the part of the loss that a model of size N0 leaves.
    u: exponent of the size.
    of_epochs: B, the part of the loss that one epoch leaves.
    v: exponent of the epochs.
    s: exponent of the size in the compute of an epoch.
    reference_size: N0.
    points: number of points of the fit.
    rms: root of the mean squared residual of log loss.
    draws: (c, A, u, B, v, s) of each resample of the bootstrap, or empty.
  """

  floor: float
  of_size: float
  u: float
  of_epochs: float
  v: float
  s: float
  reference_size: float
  points: int
  rms: float
  draws: tuple[tuple[float, ...], ...] = ()

  def predict(self, size, epochs) -> np.ndarray:
    """Returns the losses [n] of models [n] after some epochs [n]."""
    of_size = self.of_size * (np.asarray(size) / self.reference_size) ** -self.u
    return self.floor + of_size + self.of_epochs * np.asarray(epochs) ** -self.v

  def to_json(self) -> dict:
    """Returns what a file tells: values, intervals and how good the fit is."""
    names = ("floor", "of_size", "u", "of_epochs", "v", "s")
    drawn = np.array(self.draws).reshape(-1, 6).T
    told = {n: (getattr(self, n), d) for n, d in zip(names, drawn)}
    value = _exponents(self.u, self.v, self.s)
    drawn = _exponents(drawn[2], drawn[4], drawn[5])
    for name, exponent, draws in zip(_EXPONENTS, value, drawn):
      told[name] = exponent, draws
    return {
      "form": "L = c + A (N / N0)^-u + B E^-v",
      **{
        name: {
          "value": value,
          "interval": central_interval(draws) if len(draws) else None,
        }
        for name, (value, draws) in told.items()
      },
      "reference_size": self.reference_size,
      "points": self.points,
      "rms_log_residual": self.rms,
      "resamples": len(self.draws),
    }


def fit_surface(points: pd.DataFrame, *, size: str) -> Surface | None:
  """Fits the surface by least squares to log loss, from several starts.

  Args:
    points: columns compute, loss, epochs and `size`.
    size: name of the column that holds the models' sizes.

  Returns:
    The surface, or None unless there are eight points of at least three sizes
    and three numbers of epochs.
  """
  known = _known(points, size)
  if len(known) < _LEAST_POINTS or not _is_spread(known, size):
    return None
  starts = itertools.product(_SHARES, _SLOPES, _SLOPES)
  reference = float(np.exp(np.log(known[size]).mean()))
  logs = _logs(known, size, reference)
  found = min((_descend(logs, *s) for s in starts), key=lambda r: r.cost)
  rms = float(np.sqrt(2.0 * found.cost / len(known)))
  s = _cost_exponent(known, size)
  return Surface(*_values(found.x), s, reference, len(known), rms)


def bootstrap_surface(
  surface: Surface | None,
  points: pd.DataFrame,
  *,
  size: str,
  resamples: int,
  seed: int,
) -> Surface | None:
  """Returns a surface with draws, from points resampled with replacement.

  Args:
    surface: of these points, or None, which is returned as it is.
    points: see `fit_surface`.
    size: see `fit_surface`.
    resamples: number of draws; a resample without three sizes and three numbers
      of epochs is drawn again.
    seed: of the resamples.
  """
  if surface is None:
    return None
  known, generator, draws = (
    _known(points, size),
    np.random.default_rng(seed),
    [],
  )
  share = min(surface.floor / known["loss"].min(), 0.95)
  start = share, max(surface.u, 0.01), max(surface.v, 0.01)
  while len(draws) < resamples:
    chosen = known.iloc[generator.integers(0, len(known), len(known))]
    if _is_spread(chosen, size):
      logs = _logs(chosen, size, surface.reference_size)
      found = _values(_descend(logs, *start).x)
      draws.append((*found, _cost_exponent(chosen, size)))
  return dataclasses.replace(surface, draws=tuple(draws))


def _known(points, size) -> pd.DataFrame:
  known = points.dropna(subset=["compute", "loss", "epochs", size])
  return known[(known["epochs"] > 0) & (known[size] > 0)]


def _is_spread(points, size) -> bool:
  return points[size].nunique() >= 3 and points["epochs"].nunique() >= 3


def _cost_exponent(points, size) -> float:
  epoch = points["compute"] / points["epochs"]
  return float(np.polyfit(np.log(points[size]), np.log(epoch), 1)[0])


def _exponents(u, v, s):
  """Returns that of the size, that of the epochs and their difference."""
  return v / (u + s * v), u / (u + s * v), (u - v) / (u + s * v)


def _logs(points, size, reference):
  epochs, loss = points["epochs"].to_numpy(), points["loss"].to_numpy()
  return np.log(points[size].to_numpy() / reference), np.log(epochs), loss


def _descend(logs, share, u, v):
  """Descends from a floor of `share` of the lowest loss and two exponents."""
  size, epochs, loss = logs
  lowest = loss.min()
  floor = share * lowest
  # What is above the floor belongs to both parts alike.
  half = np.log((loss - floor).mean() / 2.0)

  def residuals(p):
    parts = np.exp([p[1] - p[2] * size, p[3] - p[4] * epochs]).sum(axis=0)
    return np.log(p[0] + parts) - np.log(loss)

  return optimize.least_squares(
    residuals,
    [floor, half, min(u, _STEEPEST), half, min(v, _STEEPEST)],
    bounds=(
      [0.0, -np.inf, 0.0, -np.inf, 0.0],
      [lowest, np.inf, _STEEPEST, np.inf, _STEEPEST],
    ),
  )


def _values(x) -> tuple[float, ...]:
  floor, log_a, u, log_b, v = map(float, x)
  return floor, float(np.exp(log_a)), u, float(np.exp(log_b)), v
