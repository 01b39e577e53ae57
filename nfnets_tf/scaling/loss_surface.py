"""Loss as a surface over model size and epochs: L = c + A N^-u + B E^-v.

A second estimate of the exponents of `allocation`, from all points at once.
Where an epoch takes a compute of C / E ~ N^s, the lowest loss at compute C has

  N ~ C^p, p = v / (u + s v)   and   E ~ C^q, q = u / (u + s v).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
from scipy import optimize

from nfnets_tf.scaling.power_laws import bootstrap, central_interval

_MIN_POINTS = 8  # five coefficients, and some points to judge them by
_MAX_EXPONENT = 3.0
_FLOOR_STARTS = (0.0, 0.4, 0.8)  # c / lowest loss
_EXPONENT_STARTS = (0.2, 0.5)  # of u and of v
_COEFFICIENTS = ("floor", "of_size", "u", "of_epochs", "v", "s")
_EXPONENTS = ("size_exponent", "epochs_exponent", "epochs_minus_size")


@dataclasses.dataclass(frozen=True)
class Surface:
  """L = c + A (N / N0)^-u + B E^-v, N0 the geometric mean of the sizes.

  Attributes:
    floor: c, the irreducible loss.
    of_size: A, the excess loss of a model of size N0 after infinite epochs.
    u: exponent of the size.
    of_epochs: B, the excess loss of an infinite model after one epoch.
    v: exponent of the epochs.
    s: exponent of the size in the compute of an epoch.
    reference_size: N0.
    points: number of fitted points.
    rms: root mean squared residual of log loss.
    bootstrap_samples: (c, A, u, B, v, s) of each resample, or empty.
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
  bootstrap_samples: tuple[tuple[float, ...], ...] = ()

  def predict(self, size, epochs) -> np.ndarray:
    """Returns the losses [n] of models of size [n] after epochs [n]."""
    of_size = self.of_size * (np.asarray(size) / self.reference_size) ** -self.u
    return self.floor + of_size + self.of_epochs * np.asarray(epochs) ** -self.v

  def to_json(self) -> dict:
    """Returns coefficients, intervals and the quality of the fit."""
    samples = np.array(self.bootstrap_samples).reshape(-1, 6).T
    names = (*_COEFFICIENTS, *_EXPONENTS)
    values = [getattr(self, name) for name in _COEFFICIENTS]
    values += _allocation_exponents(self.u, self.v, self.s)
    samples = [
      *samples,
      *_allocation_exponents(samples[2], samples[4], samples[5]),
    ]
    return {
      "form": "L = c + A (N / N0)^-u + B E^-v",
      **{
        name: {
          "value": value,
          "interval": central_interval(sample) if len(sample) else None,
        }
        for name, value, sample in zip(names, values, samples)
      },
      "reference_size": self.reference_size,
      "points": self.points,
      "rms_log_residual": self.rms,
      "resamples": len(self.bootstrap_samples),
    }


def fit_surface(points: pd.DataFrame, *, size: str) -> Surface | None:
  """Fits the surface by least squares to log loss, from several starts.

  Args:
    points: columns compute, loss, epochs and `size`.
    size: name of the column of model sizes.

  Returns:
    The surface, or None unless there are eight points of at least three sizes
    and three numbers of epochs.
  """
  known = _usable(points, size)
  if len(known) < _MIN_POINTS or not _spans(known, size):
    return None
  starts = itertools.product(_FLOOR_STARTS, _EXPONENT_STARTS, _EXPONENT_STARTS)
  reference = float(np.exp(np.log(known[size]).mean()))
  data = _to_arrays(known, size, reference)
  best = min((_descend(data, *s) for s in starts), key=lambda r: r.cost)
  rms = float(np.sqrt(2.0 * best.cost / len(known)))
  s = _cost_exponent(known, size)
  return Surface(*_coefficients(best.x), s, reference, len(known), rms)


def bootstrap_surface(
  surface: Surface | None,
  points: pd.DataFrame,
  *,
  size: str,
  resamples: int,
  seed: int,
) -> Surface | None:
  """Returns a surface with bootstrap samples.

  Args:
    surface: the fit to these points; None is returned as it is.
    points: see `fit_surface`.
    size: see `fit_surface`.
    resamples: number of samples; a resample without three sizes and three
      numbers of epochs is drawn again.
    seed: of the resamples.
  """
  if surface is None:
    return None
  known = _usable(points, size)
  fraction = min(surface.floor / known["loss"].min(), 0.95)
  start = fraction, max(surface.u, 0.01), max(surface.v, 0.01)

  def fit(chosen):
    table = known.iloc[chosen]
    if not _spans(table, size):
      return None
    data = _to_arrays(table, size, surface.reference_size)
    coefficients = _coefficients(_descend(data, *start).x)
    return (*coefficients, _cost_exponent(table, size))

  samples = bootstrap(fit, len(known), resamples=resamples, seed=seed)
  return dataclasses.replace(surface, bootstrap_samples=samples)


def _usable(points, size) -> pd.DataFrame:
  known = points.dropna(subset=["compute", "loss", "epochs", size])
  return known[(known["epochs"] > 0) & (known[size] > 0)]


def _spans(points, size) -> bool:
  return points[size].nunique() >= 3 and points["epochs"].nunique() >= 3


def _cost_exponent(points, size) -> float:
  """Returns s of C / E ~ N^s."""
  epoch = points["compute"] / points["epochs"]
  return float(np.polyfit(np.log(points[size]), np.log(epoch), 1)[0])


def _allocation_exponents(u, v, s):
  """Returns p, q and q - p of the module's docstring."""
  return v / (u + s * v), u / (u + s * v), (u - v) / (u + s * v)


def _to_arrays(points, size, reference):
  """Returns log(N / N0), log E and L, each [n]."""
  epochs, loss = points["epochs"].to_numpy(), points["loss"].to_numpy()
  return np.log(points[size].to_numpy() / reference), np.log(epochs), loss


def _descend(data, floor_fraction, u, v):
  """Runs least squares from a floor / lowest loss and two exponents."""
  size, epochs, loss = data
  lowest = loss.min()
  floor = floor_fraction * lowest
  # Start with the excess over the floor split equally.
  half = np.log((loss - floor).mean() / 2.0)

  def residuals(p):
    parts = np.exp([p[1] - p[2] * size, p[3] - p[4] * epochs]).sum(axis=0)
    return np.log(p[0] + parts) - np.log(loss)

  return optimize.least_squares(
    residuals,
    [floor, half, min(u, _MAX_EXPONENT), half, min(v, _MAX_EXPONENT)],
    bounds=(
      [0.0, -np.inf, 0.0, -np.inf, 0.0],
      [lowest, np.inf, _MAX_EXPONENT, np.inf, _MAX_EXPONENT],
    ),
  )


def _coefficients(x) -> tuple[float, ...]:
  """Returns (c, A, u, B, v) of the solver's variables [5]."""
  floor, log_a, u, log_b, v = map(float, x)
  return floor, float(np.exp(log_a)), u, float(np.exp(log_b)), v
