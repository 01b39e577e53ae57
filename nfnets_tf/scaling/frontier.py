"""Which model, trained for how long, is best at a compute.

Tables have the columns that `points` gives.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from nfnets_tf.scaling.laws import central_interval

_LEAST_BUDGETS = 3
_LEAST_SPAN = 2.0  # of compute, over which exponents mean something
_COLUMNS = (
  "compute",
  "models",
  "best_model",
  "size",
  "epochs",
  "loss",
  "state",
)


def envelope(points: pd.DataFrame) -> pd.DataFrame:
  """Returns the points that no cheaper or equally dear one beats.

  Args:
    points: columns compute and loss, any others; rows that lack one of the two
      are left out.
  """
  by = ["compute", "loss"]
  ranked = points.dropna(subset=by).sort_values(by, kind="stable")
  before = ranked["loss"].astype(float).cummin().shift(fill_value=np.inf)
  return ranked[ranked["loss"] < before].reset_index(drop=True)


def optimal_allocation(
  points: pd.DataFrame, *, size: str, budgets: int
) -> pd.DataFrame:
  """Returns the best size and number of epochs at each of some budgets.

  At a budget each model's loss and epochs are interpolated on its own curve,
  log against log and never beyond its ends; a parabola in log size through log
  losses has its lowest point at the best size, and the epochs there are
  interpolated between models.

  Args:
    points: columns model, compute, loss, epochs and `size`.
    size: name of the column that holds the models' sizes.
    budgets: number of computes, at equal ratios over the range of the points.

  Returns:
    Columns compute, models (number that reach the budget), best_model, size,
    epochs, loss, and state: "interior", "edge" if the best model is the
    smallest or the largest or the parabola has no lowest point between them,
    or "few" if models of fewer than three sizes reach the budget. Only
    "interior" rows have a size, epochs and loss.
  """
  curves = _curves(points, size)
  if not curves:
    return pd.DataFrame(columns=list(_COLUMNS))
  low = min(curve[1][0] for curve in curves.values())
  high = max(curve[1][-1] for curve in curves.values())
  rows = [_optimum(curves, x) for x in np.linspace(low, high, budgets)]
  return pd.DataFrame(rows, columns=list(_COLUMNS))


def slices(points: pd.DataFrame, *, size: str, compute: float) -> pd.DataFrame:
  """Returns size, loss and epochs of each model that reaches a budget.

  Args:
    points: see `optimal_allocation`.
    size: see `optimal_allocation`.
    compute: the budget.
  """
  found = _slice(_curves(points, size), np.log(compute))
  columns = ["model", "size", "loss", "epochs"]
  table = pd.DataFrame(found, columns=columns)
  return table.assign(**np.exp(table[columns[1:]].astype(float)))


def _curves(points, size) -> dict[str, tuple[float, np.ndarray, ...]]:
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


def _slice(curves, x):
  """Returns (model, log size, log loss, log epochs) of who reaches log x."""
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
  found = _slice(curves, x)
  unknown = (np.nan,) * 3
  compute = float(np.exp(x))
  if not found:
    return (compute, 0, None, *unknown, "few")
  names, sizes, losses, epochs = map(np.array, zip(*found))
  best = int(losses.argmin())
  reached = (compute, len(found), names[best])
  if len(np.unique(sizes)) < 3:
    return (*reached, *unknown, "few")
  square, slope, constant = np.polyfit(sizes, losses, 2)
  lowest = -slope / (2.0 * square) if square > 0 else np.inf
  inside = sizes[0] < lowest < sizes[-1] and 0 < best < len(found) - 1
  if not inside:
    return (*reached, *unknown, "edge")
  values = (
    lowest,
    np.interp(lowest, sizes, epochs),
    constant + slope * lowest / 2,
  )
  return (*reached, *np.exp(values).tolist(), "interior")


@dataclasses.dataclass(frozen=True)
class Exponents:
  """N = k C^p and E = m C^q: how size and epochs grow with compute.

  Attributes:
    p: exponent of the size.
    q: exponent of the epochs; p = q is growth "at the same rate".
    k: size at a compute of 1.
    m: epochs at a compute of 1.
    budgets: number of optima behind it.
    draws: (p, q, k, m) of each resample of the points that had enough optima.
  """

  p: float
  q: float
  k: float
  m: float
  budgets: int
  draws: tuple[tuple[float, float, float, float], ...] = ()

  def compute_of_one_epoch(self) -> float:
    """Returns the compute from which on more than one epoch is best."""
    return _one_epoch(self.q, self.m)

  def to_json(self) -> dict:
    """Returns what a file tells: values and intervals."""
    drawn = np.array(self.draws).reshape(-1, 4).T

    def told(value, draws):
      interval = central_interval(draws) if len(draws) else None
      return {"value": value, "interval": interval}

    return {
      "size_exponent": told(self.p, drawn[0]),
      "epochs_exponent": told(self.q, drawn[1]),
      "epochs_minus_size": told(self.q - self.p, drawn[1] - drawn[0]),
      "compute_of_one_epoch": told(
        self.compute_of_one_epoch(), _one_epoch(drawn[1], drawn[3])
      ),
      "budgets": self.budgets,
      "resamples": len(self.draws),
    }


def fit_exponents(allocation: pd.DataFrame) -> Exponents | None:
  """Fits how the best size and epochs grow, to the interior optima.

  Returns:
    The exponents, or None unless there are at least three optima over at least
    a factor of two of compute.
  """
  inside = allocation[allocation["state"] == "interior"]
  if len(inside) < _LEAST_BUDGETS:
    return None
  compute, size, epochs = np.log(
    inside[["compute", "size", "epochs"]].to_numpy(float).T
  )
  if np.ptp(compute) < np.log(_LEAST_SPAN):
    return None
  p, log_k = np.polyfit(compute, size, 1).tolist()
  q, log_m = np.polyfit(compute, epochs, 1).tolist()
  return Exponents(p, q, *np.exp([log_k, log_m]).tolist(), len(inside))


def bootstrap_exponents(
  points: pd.DataFrame, *, size: str, budgets: int, resamples: int, seed: int
) -> Exponents | None:
  """Fits the exponents, and again to points resampled with replacement.

  Args:
    points: see `optimal_allocation`.
    size: see `optimal_allocation`.
    budgets: see `optimal_allocation`.
    resamples: number of times; one that gives no exponents is left out.
    seed: of the resamples.
  """
  found = fit_exponents(optimal_allocation(points, size=size, budgets=budgets))
  if found is None:
    return None
  generator, draws = np.random.default_rng(seed), []
  for _ in range(resamples):
    chosen = points.iloc[generator.integers(0, len(points), len(points))]
    allocation = optimal_allocation(chosen, size=size, budgets=budgets)
    drawn = fit_exponents(allocation)
    if drawn is not None:
      draws.append((drawn.p, drawn.q, drawn.k, drawn.m))
  return dataclasses.replace(found, draws=tuple(draws))


def _one_epoch(q, m):
  with np.errstate(over="ignore", divide="ignore"):
    return np.exp(-np.log(m) / q)
