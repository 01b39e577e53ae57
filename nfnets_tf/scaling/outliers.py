"""Points that the laws of all other points rule out: a slipped unit, a typo.

A set of points is an outlier of a linear model of the logs if a model without
it fits much better than chance allows (the mean-shift test: exact for normal
noise, whatever the leverage of the points, and summed over all sets of that
size). All sets of up to three points are tried, so that outliers cannot mask
each other; then the rest is searched again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

_LEVEL = 2e-4  # probability of a false alarm, for each size of sets
_MAX_SET = 3
_MAX_SHARE = 0.25  # of the points; with more there is no saying who is right
_MIN_POINTS = 4
_CANDIDATES = 40  # of many points, those that are tried
_MIN_LOSS_RATIO = 1.05  # less changes no law
_MIN_COMPUTE_RATIO = 1.5  # utilization may differ as much
_GAP = 1e4  # between neighboring computes; no ladder of models has such a step
# A few points may lie on a line by chance; what is known of such noise counts
# as two more of them.
_LOSS_NOISE, _COMPUTE_NOISE, _PRIOR_WEIGHT = 0.02, 0.1, 2.0
_SINGULAR = 1e-8
_MIN_FREEDOM = 2  # points more than coefficients
_ALONE = 0.99  # leverage
_MIN_ALONE_RATIO = 1.5


class Outliers(NamedTuple):
  """Points that a model of the others rules out.

  Attributes:
    chosen: whether each point is one [n].
    expected: log of the value that the other points predict [n].
  """

  chosen: np.ndarray
  expected: np.ndarray


def law_outliers(compute: Sequence[float], loss: Sequence[float]) -> np.ndarray:
  """Returns which points no law of loss against compute explains, bool [n].

  Args:
    compute: [n], above 0.
    loss: [n], above 0.
  """
  x, y = np.log(np.asarray([compute, loss], float))
  if len(x) < _MIN_POINTS:
    return np.zeros(len(x), bool)
  return _find(_curves(x), y, _LOSS_NOISE, np.log(_MIN_LOSS_RATIO)).chosen


def find_outliers(points: pd.DataFrame) -> pd.DataFrame:
  """Returns the points whose compute or loss contradicts the others.

  The compute is expected to be a product of powers of size and epochs. The loss
  is expected on a smooth curve against compute, or surface over size and
  epochs, whichever fits better: points far from the frontier are no outliers.

  Args:
    points: columns compute, loss, size and epochs, all above 0.

  Returns:
    The rows that are outliers, with further columns: quantity, "compute" or
    "loss", and expected, its value by the other points.
  """
  points = points.assign(quantity="", expected=np.nan)
  if len(points) < _MIN_POINTS:
    return points.iloc[:0]
  logs = np.log(points[["compute", "loss", "size", "epochs"]].to_numpy(float))
  _mark(points, "compute", _compute_outliers(logs))
  rest = (points["quantity"] == "").to_numpy()
  x, y, size, epochs = logs[rest].T
  designs = {**_curves(x), **_surfaces(size, epochs)}
  result = _find(designs, y, _LOSS_NOISE, np.log(_MIN_LOSS_RATIO))
  chosen, expected = np.zeros(len(points), bool), np.full(len(points), np.nan)
  chosen[rest], expected[rest] = result
  _mark(points, "loss", Outliers(chosen, expected))
  return points[points["quantity"] != ""]


def split_outliers(
  runs: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Returns the runs without outliers, and the outliers.

  Args:
    runs: of `read_runs`. The best run of each model and number of epochs is
      judged; one that is too good gives its place to the next one, one that is
      too bad takes the worse ones with it.

  Returns:
    Both as `runs`, the outliers with the columns quantity and expected.
  """
  found = []
  while True:
    best = runs.sort_values("loss", kind="stable")
    best = best.drop_duplicates(["model", "epochs"])
    new = find_outliers(best.sort_values("compute", kind="stable"))
    if new.empty:
      break
    found.append(new)
    runs = runs.drop(index=new.index)
    for point in new.itertuples():
      if point.quantity == "loss" and point.loss > point.expected:
        same = (runs["model"] == point.model) & (runs["epochs"] == point.epochs)
        runs = runs[~same]
  none = runs.iloc[:0].assign(quantity="", expected=np.nan)
  return runs, pd.concat(found, ignore_index=True) if found else none


def split_law_outliers(
  points: pd.DataFrame,
  fit: Callable[[pd.DataFrame], Any],
  slopes: Callable[[Any, pd.DataFrame], np.ndarray],
  enough: Callable[[pd.DataFrame], bool],
) -> tuple[Any, pd.DataFrame]:
  """Returns the law of the points that agree, and the outliers.

  Args:
    points: columns sparsity, nonzero, data and loss.
    fit: returns the law of points, which predicts by the first three.
    slopes: returns the derivatives of log loss by the variables of a fit [n, p]
      at a law and points.
    enough: returns whether points determine a law.

  Returns:
    The law, and the outliers with a further column: predicted.
  """
  kept, law = points, fit(points)
  while len(kept) >= _MIN_POINTS:
    designs = {"law": slopes(law, kept)}
    residuals = np.log(kept["loss"] / _predict(law, kept)).to_numpy()
    least = np.log(_MIN_LOSS_RATIO)
    rest = kept[~_find(designs, residuals, _LOSS_NOISE, least).chosen]
    most = _MAX_SHARE * len(points)
    if len(rest) == len(kept) or len(points) - len(rest) > most:
      break
    if not enough(rest):
      break
    kept, law = rest, fit(rest)
  odd = points.drop(index=kept.index)
  return law, odd.assign(predicted=_predict(law, odd))


def _predict(law: Any, points: pd.DataFrame) -> np.ndarray:
  return law.predict(*(points[n] for n in ("sparsity", "nonzero", "data")))


def _mark(points: pd.DataFrame, quantity: str, found: Outliers) -> None:
  points.loc[found.chosen, "quantity"] = quantity
  points.loc[found.chosen, "expected"] = np.exp(found.expected[found.chosen])


def _compute_outliers(logs: np.ndarray) -> Outliers:
  x, _, size, epochs = logs.T
  found = _whole_sizes(x, size, epochs)
  rest = ~found.chosen
  # Without the size there is no judging a model that is alone in its size.
  designs = {"product": _design(size[rest], epochs[rest])}
  found.chosen[rest], found.expected[rest] = _find(
    designs, x[rest], _COMPUTE_NOISE, np.log(_MIN_COMPUTE_RATIO)
  )
  # Tables without true sizes and epochs: far away is far away.
  order = np.argsort(x, kind="stable")
  gaps = np.flatnonzero(np.diff(x[order]) > np.log(_GAP))
  for gap in gaps:
    small, large = sorted((order[: gap + 1], order[gap + 1 :]), key=len)
    if len(small) <= _MAX_SHARE * len(x):
      new = small[~found.chosen[small]]
      found.chosen[new] = True
      found.expected[new] = np.median(x[large])
  return found


def _whole_sizes(
  x: np.ndarray, size: np.ndarray, epochs: np.ndarray
) -> Outliers:
  """Returns the sizes whose compute is wrong in all their points.

  So are those of a model whose rows have another unit: too many for a set, but
  told by medians, which no single point moves.
  """
  found = Outliers(np.zeros(len(x), bool), np.full(len(x), np.nan))
  sizes, group = np.unique(size, return_inverse=True)
  first, second = np.triu_indices(len(x), 1)
  pairs = (group[first] == group[second]) & (epochs[first] != epochs[second])
  if len(sizes) < _MIN_POINTS or not pairs.any():
    return found
  first, second = first[pairs], second[pairs]
  slope = np.median((x[first] - x[second]) / (epochs[first] - epochs[second]))
  levels = np.array(
    [np.median((x - slope * epochs)[group == i]) for i in range(len(sizes))]
  )
  designs = {"product": _design(sizes)}
  result = _find(designs, levels, _COMPUTE_NOISE, np.log(_MIN_COMPUTE_RATIO))
  expected = result.expected[group] + slope * epochs
  for i in np.flatnonzero(result.chosen):
    off = np.abs(x - expected)[group == i]
    # A single point, or some of them, are judged with all others.
    if len(off) > 1 and off.min() > np.median(off) / 2:
      found.chosen[group == i] = True
      found.expected[group == i] = expected[group == i]
  if found.chosen.sum() > _MAX_SHARE * len(x):
    found.chosen[:] = False
  return found


def _design(*columns: np.ndarray) -> np.ndarray:
  return np.stack([np.ones_like(columns[0]), *columns], axis=1)


def _curves(x: np.ndarray) -> dict[str, np.ndarray]:
  """Returns {name: design [n, p]} of curves that a bent law resembles."""
  x = (x - x.mean()) / (x.std() or 1.0)
  return {
    "line": _design(x),
    "parabola": _design(x, x**2),
    "cubic": _design(x, x**2, x**3),
  }


def _surfaces(size: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
  """Returns {name: design [n, p]} of surfaces over log size and log epochs."""
  s, e = ((v - v.mean()) / (v.std() or 1.0) for v in (size, epochs))
  return {
    "plane": _design(s, e),
    "paraboloid": _design(s, e, s**2, e**2, s * e),
  }


def _find(
  designs: dict[str, np.ndarray], y: np.ndarray, noise: float, least: float
) -> Outliers:
  """Returns the outliers under the model that explains the others best.

  A point that is alone, such as the only one of its size, is explained by any
  model with a coefficient for it; it is judged by the simpler models, by a
  wider margin.
  """
  best, best_score, alone, simple = None, np.inf, None, {}
  for name, design in designs.items():
    left, rank = _basis(design)
    if len(y) - rank < _MIN_FREEDOM:
      continue
    chosen, fitted, squares = _search(design, y, noise, least)
    squares += _PRIOR_WEIGHT * noise**2
    # The Bayesian information criterion, where an outlier costs its place and
    # its value.
    count = rank + 2 * chosen.sum()
    score = len(y) * np.log(squares) + count * np.log(len(y))
    only = (left**2).sum(axis=1) > _ALONE
    if not only.any():
      simple[name] = design
    if score < best_score:
      best, best_score, alone = Outliers(chosen, fitted), score, only
  if best is None:
    return Outliers(np.zeros(len(y), bool), np.full(len(y), np.nan))
  if alone.any() and simple:
    rest = np.flatnonzero(~best.chosen)
    reduced = {name: design[rest] for name, design in simple.items()}
    chosen, fitted = _find(
      reduced, y[rest], noise, max(least, np.log(_MIN_ALONE_RATIO))
    )
    more = chosen & alone[rest]
    best.chosen[rest[more]], best.expected[rest[more]] = True, fitted[more]
  return best


def _basis(design: np.ndarray) -> tuple[np.ndarray, int]:
  """Returns an orthonormal basis [n, rank] of the design's columns."""
  left, values, _ = np.linalg.svd(design, full_matrices=False)
  left = left[:, values > _SINGULAR * values.max(initial=0.0)]
  return left, left.shape[1]


def _search(design, y, noise, least):
  """Removes sets of outliers until none is left.

  Returns:
    Which points are outliers, the model's values without them, and the sum of
    squares of the others.
  """
  kept, most = np.arange(len(y)), int(max(1, _MAX_SHARE * len(y)))
  removed = 0
  while removed < most:
    allowed = min(_MAX_SET, most - removed)
    found = _largest_set(design[kept], y[kept], allowed, noise, least)
    if not len(found):
      break
    kept, removed = np.delete(kept, found), removed + len(found)
  chosen = np.ones(len(y), bool)
  chosen[kept] = False
  coefficients, *_ = np.linalg.lstsq(design[kept], y[kept], rcond=None)
  fitted = design @ coefficients
  return chosen, fitted, float(((y - fitted)[kept] ** 2).sum())


def _largest_set(design, y, allowed, noise, least) -> Sequence[int]:
  """Returns the largest set of up to `allowed` points that are all outliers."""
  left, rank = _basis(design)
  residuals = y - left @ (left.T @ y)
  apart = np.eye(len(y)) - left @ left.T
  total, freedom = residuals @ residuals, len(y) - rank
  candidates = np.arange(len(y))
  if len(y) > _CANDIDATES:
    deleted = np.abs(residuals) / np.sqrt(apart.diagonal().clip(_SINGULAR))
    candidates = np.sort(np.argsort(-deleted)[:_CANDIDATES])
  for size in range(allowed, 0, -1):
    sets = np.array(list(itertools.combinations(candidates, size)))
    if freedom - size < 1 or not len(sets):
      continue
    blocks = apart[sets[:, :, None], sets[:, None, :]]
    sets, blocks = (
      v[np.linalg.det(blocks) > _SINGULAR] for v in (sets, blocks)
    )
    if not len(sets):
      continue
    shifts = np.linalg.solve(blocks, residuals[sets][..., None])[..., 0]
    gains = (shifts * residuals[sets]).sum(axis=1)
    best = gains.argmax()
    # Squares and freedom of the others, with what is known of the noise.
    weight = freedom - size + _PRIOR_WEIGHT
    spread = max(total - gains[best], 0.0) + _PRIOR_WEIGHT * noise**2
    variance = spread / weight
    error = np.sqrt(variance * np.linalg.inv(blocks[best]).diagonal())
    shift, count = np.abs(shifts[best]), len(sets)
    joint = count * stats.f.sf(gains[best] / size / variance, size, weight)
    each = 2.0 * len(y) * stats.t.sf(shift / error, weight)
    if joint < _LEVEL and (each < _LEVEL).all() and (shift > least).all():
      return sets[best]
  return ()
