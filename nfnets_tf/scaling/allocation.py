"""The Pareto frontier, and the best model size and epochs at a compute.

The growth of both with compute is estimated twice: from the best sizes at some
computes, and from a surface of loss over size and epochs through all points,

  L = c + A N^-u + B E^-v.

Where an epoch takes a compute of C / E ~ N^s, its lowest loss at compute C has
N ~ C^p, p = v / (u + s v), and E ~ C^q, q = u / (u + s v).

Tables have the columns that `study.read_runs` returns, without missing numbers.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
from scipy import optimize

from nfnets_tf.scaling.power_laws import bootstrap, describe_estimate

NUM_BUDGETS = 25  # computes at which the best size is sought
_MIN_OPTIMA = 3
_MIN_COMPUTE_RATIO = 2.0  # exponents over a narrower range mean nothing
_MIN_POINTS = 8  # five coefficients, and some points to judge them by
_MAX_EXPONENT = 3.0
_FLOOR_STARTS = (0.0, 0.4, 0.8)  # c / lowest loss
_EXPONENT_STARTS = (0.2, 0.5)  # of u and of v
_COLUMNS = [
  "compute",
  "models",
  "best_model",
  "size",
  "epochs",
  "loss",
  "state",
]


def pareto_frontier(points: pd.DataFrame) -> pd.DataFrame:
  """Returns the Pareto frontier of (compute, loss), cheapest first."""
  ranked = points.sort_values(["compute", "loss"], kind="stable")
  lowest = ranked["loss"].astype(float).cummin().shift(fill_value=np.inf)
  return ranked[ranked["loss"] < lowest].reset_index(drop=True)


def optimal_allocation(
  points: pd.DataFrame, *, budgets: int = NUM_BUDGETS
) -> pd.DataFrame:
  """Returns the best size and number of epochs at each of some budgets.

  At a budget the loss and the epochs of each model are interpolated along its
  own curve, log against log, never beyond its ends. A parabola in log size
  through the log losses has its minimum at the best size, and the epochs there
  are interpolated between models.

  Args:
    points: columns model, compute, loss, epochs and size.
    budgets: number of computes, log-spaced over the range of the points.

  Returns:
    Columns compute, models (number that reach the budget), best_model, size,
    epochs, loss, and state: "interior"; "edge" if the best model is the
    smallest or the largest, or the parabola has no minimum between them;
    "too_few_models" if models of fewer than three sizes reach the budget. Only
    "interior" rows have a size, epochs and loss.
  """
  curves = _model_curves(points)
  if not curves:
    return pd.DataFrame(columns=_COLUMNS)
  low = min(computes[0] for _, computes, *_ in curves.values())
  high = max(computes[-1] for _, computes, *_ in curves.values())
  rows = [_optimum(curves, x) for x in np.linspace(low, high, budgets)]
  return pd.DataFrame(rows, columns=_COLUMNS)


def _model_curves(points) -> dict[str, tuple[float, np.ndarray, ...]]:
  """Returns {model: (log size, log computes, log losses, log epochs)}."""
  ranked = points.sort_values(["size", "compute", "loss"], kind="stable")
  curves = {}
  for model, group in ranked.groupby("model", sort=False):
    group = group.drop_duplicates("compute")
    if len(group) > 1:
      logs = np.log(group[["compute", "loss", "epochs"]].to_numpy().T)
      curves[model] = (float(np.log(group["size"].iloc[0])), *logs)
  return curves


def _interpolate_models(curves, x):
  """Returns (model, log size, log loss, log epochs) where a curve spans x."""
  slack = 1e-9
  return [
    (
      model,
      size,
      np.interp(x, computes, losses),
      np.interp(x, computes, epochs),
    )
    for model, (size, computes, losses, epochs) in curves.items()
    if computes[0] - slack <= x <= computes[-1] + slack
  ]


def _optimum(curves, x) -> tuple:
  """Returns the row of `optimal_allocation` at log compute x."""
  models = _interpolate_models(curves, x)
  unknown = (np.nan,) * 3
  compute = float(np.exp(x))
  if not models:
    return (compute, 0, None, *unknown, "too_few_models")
  names, sizes, losses, epochs = map(np.array, zip(*models))
  best = int(losses.argmin())
  row = (compute, len(models), names[best])
  if len(np.unique(sizes)) < 3:
    return (*row, *unknown, "too_few_models")
  square, slope, constant = np.polyfit(sizes, losses, 2)
  minimum = -slope / (2.0 * square) if square > 0 else np.inf
  inside = sizes[0] < minimum < sizes[-1] and 0 < best < len(models) - 1
  if not inside:
    return (*row, *unknown, "edge")
  values = (
    minimum,
    np.interp(minimum, sizes, epochs),
    constant + slope * minimum / 2,
  )
  return (*row, *np.exp(values).tolist(), "interior")


@dataclasses.dataclass(frozen=True)
class Exponents:
  """Growth of the best size and epochs with compute: N = k C^p, E = m C^q.

  Attributes:
    p: exponent of the size.
    q: exponent of the epochs; p = q is growth "at the same rate".
    k: size at a compute of 1.
    m: epochs at a compute of 1.
    budgets: number of optima that were fitted.
    bootstrap_samples: (p, q, k, m) of each resample with enough optima.
  """

  p: float
  q: float
  k: float
  m: float
  budgets: int
  bootstrap_samples: tuple[tuple[float, float, float, float], ...] = ()

  def compute_of_one_epoch(self) -> float:
    """Returns the compute above which more than one epoch is best."""
    return _compute_of_one_epoch(self.q, self.m)

  def to_json(self) -> dict:
    """Returns values and intervals."""
    p, q, _, m = np.array(self.bootstrap_samples).reshape(-1, 4).T
    start, starts = self.compute_of_one_epoch(), _compute_of_one_epoch(q, m)
    return {
      "size_exponent": describe_estimate(self.p, p),
      "epochs_exponent": describe_estimate(self.q, q),
      "epochs_minus_size": describe_estimate(self.q - self.p, q - p),
      "compute_of_one_epoch": describe_estimate(start, starts),
      "budgets": self.budgets,
      "resamples": len(self.bootstrap_samples),
    }


def fit_exponents(allocation: pd.DataFrame) -> Exponents | None:
  """Fits the growth of the best size and epochs to the interior optima.

  Args:
    allocation: of `optimal_allocation`.

  Returns:
    The exponents, or None unless there are at least three optima over at least
    a factor of two of compute.
  """
  inside = allocation[allocation["state"] == "interior"]
  if len(inside) < _MIN_OPTIMA:
    return None
  compute, size, epochs = np.log(
    inside[["compute", "size", "epochs"]].to_numpy(float).T
  )
  if np.ptp(compute) < np.log(_MIN_COMPUTE_RATIO):
    return None
  p, log_k = np.polyfit(compute, size, 1).tolist()
  q, log_m = np.polyfit(compute, epochs, 1).tolist()
  return Exponents(p, q, *np.exp([log_k, log_m]).tolist(), len(inside))


def bootstrap_exponents(
  points: pd.DataFrame, *, resamples: int, seed: int
) -> Exponents | None:
  """Fits the exponents to the points and to resamples of them.

  Args:
    points: see `optimal_allocation`.
    resamples: number of resamples; those without exponents are dropped.
    seed: of the resamples.
  """

  def fit_resample(chosen):
    sample = fit_exponents(optimal_allocation(points.iloc[chosen]))
    return sample and (sample.p, sample.q, sample.k, sample.m)

  exponents = fit_exponents(optimal_allocation(points))
  if exponents is None:
    return None
  samples = bootstrap(
    fit_resample, len(points), resamples=resamples, seed=seed, redraw=False
  )
  return dataclasses.replace(exponents, bootstrap_samples=samples)


def _compute_of_one_epoch(q, m):
  with np.errstate(over="ignore", divide="ignore"):
    return np.exp(-np.log(m) / q)


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
    """Returns coefficients, exponents, intervals and the quality of the fit."""
    names = ("floor", "of_size", "u", "of_epochs", "v", "s")
    values = {name: getattr(self, name) for name in names}
    samples = np.array(self.bootstrap_samples).reshape(-1, 6).T
    samples = dict(zip(names, samples))
    for each in (values, samples):
      each.update(_allocation_exponents(each["u"], each["v"], each["s"]))
    return {
      "form": "L = c + A (N / N0)^-u + B E^-v",
      **{n: describe_estimate(values[n], samples[n]) for n in values},
      "reference_size": self.reference_size,
      "points": self.points,
      "rms_log_residual": self.rms,
      "resamples": len(self.bootstrap_samples),
    }


def fit_surface(points: pd.DataFrame) -> Surface | None:
  """Fits the surface by least squares to log loss, from several starts.

  Args:
    points: columns compute, loss, epochs and size.

  Returns:
    The surface, or None unless there are eight points of at least three sizes
    and three numbers of epochs.
  """
  if len(points) < _MIN_POINTS or not _spans(points):
    return None
  starts = itertools.product(_FLOOR_STARTS, _EXPONENT_STARTS, _EXPONENT_STARTS)
  reference = float(np.exp(np.log(points["size"]).mean()))
  data = _to_arrays(points, reference)
  best = min((_descend(data, *s) for s in starts), key=lambda r: r.cost)
  rms = float(np.sqrt(2.0 * best.cost / len(points)))
  s = _cost_exponent(points)
  return Surface(*_coefficients(best.x), s, reference, len(points), rms)


def bootstrap_surface(
  surface: Surface | None, points: pd.DataFrame, *, resamples: int, seed: int
) -> Surface | None:
  """Returns a surface with bootstrap samples.

  Args:
    surface: the fit to these points; None is returned as it is.
    points: see `fit_surface`.
    resamples: number of samples; a resample without three sizes and three
      numbers of epochs is drawn again.
    seed: of the resamples.
  """
  if surface is None:
    return None
  fraction = min(surface.floor / points["loss"].min(), 0.95)
  start = fraction, max(surface.u, 0.01), max(surface.v, 0.01)

  def fit(chosen):
    table = points.iloc[chosen]
    if not _spans(table):
      return None
    data = _to_arrays(table, surface.reference_size)
    coefficients = _coefficients(_descend(data, *start).x)
    return (*coefficients, _cost_exponent(table))

  samples = bootstrap(fit, len(points), resamples=resamples, seed=seed)
  return dataclasses.replace(surface, bootstrap_samples=samples)


def _spans(points) -> bool:
  return bool((points[["size", "epochs"]].nunique() >= 3).all())


def _cost_exponent(points) -> float:
  """Returns s of C / E ~ N^s."""
  epoch = points["compute"] / points["epochs"]
  return float(np.polyfit(np.log(points["size"]), np.log(epoch), 1)[0])


def _allocation_exponents(u, v, s) -> dict:
  """Returns p, q and q - p of the module's docstring."""
  return {
    "size_exponent": v / (u + s * v),
    "epochs_exponent": u / (u + s * v),
    "epochs_minus_size": (u - v) / (u + s * v),
  }


def _to_arrays(points, reference):
  """Returns log(N / N0), log E and L, each [n]."""
  epochs, loss = points["epochs"].to_numpy(), points["loss"].to_numpy()
  return np.log(points["size"].to_numpy() / reference), np.log(epochs), loss


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
