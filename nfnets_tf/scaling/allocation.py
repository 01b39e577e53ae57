"""The Pareto frontier, and the best model size and epochs at a compute.

Tables have the columns that `study.read_runs` returns.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from nfnets_tf.scaling.power_laws import bootstrap, central_interval

_MIN_OPTIMA = 3
_MIN_COMPUTE_RATIO = 2.0  # exponents over a narrower range mean nothing
_COLUMNS = (
  "compute",
  "models",
  "best_model",
  "size",
  "epochs",
  "loss",
  "state",
)


def pareto_frontier(points: pd.DataFrame) -> pd.DataFrame:
  """Returns the Pareto frontier of (compute, loss), cheapest first.

  Args:
    points: columns compute and loss, any others; rows without one of the two
      are ignored.
  """
  by = ["compute", "loss"]
  ranked = points.dropna(subset=by).sort_values(by, kind="stable")
  lowest = ranked["loss"].astype(float).cummin().shift(fill_value=np.inf)
  return ranked[ranked["loss"] < lowest].reset_index(drop=True)


def optimal_allocation(
  points: pd.DataFrame, *, size: str, budgets: int
) -> pd.DataFrame:
  """Returns the best size and number of epochs at each of some budgets.

  At a budget the loss and the epochs of each model are interpolated along its
  own curve, log against log, never beyond its ends. A parabola in log size
  through the log losses has its minimum at the best size, and the epochs there
  are interpolated between models.

  Args:
    points: columns model, compute, loss, epochs and `size`.
    size: name of the column of model sizes.
    budgets: number of computes, log-spaced over the range of the points.

  Returns:
    Columns compute, models (number that reach the budget), best_model, size,
    epochs, loss, and state: "interior"; "edge" if the best model is the
    smallest or the largest, or the parabola has no minimum between them;
    "too_few_models" if models of fewer than three sizes reach the budget. Only
    "interior" rows have a size, epochs and loss.
  """
  curves = _model_curves(points, size)
  if not curves:
    return pd.DataFrame(columns=list(_COLUMNS))
  low = min(computes[0] for _, computes, *_ in curves.values())
  high = max(computes[-1] for _, computes, *_ in curves.values())
  rows = [_optimum(curves, x) for x in np.linspace(low, high, budgets)]
  return pd.DataFrame(rows, columns=list(_COLUMNS))


def _model_curves(points, size) -> dict[str, tuple[float, np.ndarray, ...]]:
  """Returns {model: (log size, log computes, log losses, log epochs)}."""
  known = points.dropna(subset=["model", "compute", "loss", "epochs", size])
  known = known[(known["epochs"] > 0) & (known[size] > 0)]
  ranked = known.sort_values([size, "compute", "loss"], kind="stable")
  curves = {}
  for model, group in ranked.groupby("model", sort=False):
    group = group.drop_duplicates("compute")
    if len(group) > 1:
      logs = np.log(group[["compute", "loss", "epochs"]].to_numpy().T)
      curves[model] = (float(np.log(group[size].iloc[0])), *logs)
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

    def entry(value, samples):
      interval = central_interval(samples) if len(samples) else None
      return {"value": value, "interval": interval}

    return {
      "size_exponent": entry(self.p, p),
      "epochs_exponent": entry(self.q, q),
      "epochs_minus_size": entry(self.q - self.p, q - p),
      "compute_of_one_epoch": entry(
        self.compute_of_one_epoch(), _compute_of_one_epoch(q, m)
      ),
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
  points: pd.DataFrame, *, size: str, budgets: int, resamples: int, seed: int
) -> Exponents | None:
  """Fits the exponents to the points and to resamples of them.

  Args:
    points: see `optimal_allocation`.
    size: see `optimal_allocation`.
    budgets: see `optimal_allocation`.
    resamples: number of resamples; those without exponents are dropped.
    seed: of the resamples.
  """

  def fit(table):
    return fit_exponents(optimal_allocation(table, size=size, budgets=budgets))

  def fit_resample(chosen):
    sample = fit(points.iloc[chosen])
    return sample and (sample.p, sample.q, sample.k, sample.m)

  exponents = fit(points)
  if exponents is None:
    return None
  samples = bootstrap(
    fit_resample, len(points), resamples=resamples, seed=seed, redraw=False
  )
  return dataclasses.replace(exponents, bootstrap_samples=samples)


def _compute_of_one_epoch(q, m):
  with np.errstate(over="ignore", divide="ignore"):
    return np.exp(-np.log(m) / q)
