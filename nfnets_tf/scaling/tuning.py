"""Tuning one number on a logarithmic grid, with as few trials as it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nfnets_tf.errors import UserError, require_int


class GridSearch:
  """Finds the best value on a grid spaced by a factor.

  The paper tunes learning rates "on a small logarithmic grid", "spaced by
  factors of 2", for each model and epoch budget by itself (section 2). Here a
  search begins at the optimum of a neighbour in the sweep, goes on towards the
  side that is better, and stops when both sides are worse: three trials where
  the neighbour's optimum holds.

  Args:
    macro: that is tuned, such as "PEAK_LR".
    start: its value where no neighbour is known yet, > 0.
    factor: between neighbours on the grid, > 1; the paper's is 2.
    both_sides: whether both sides of the best must be known. If not, the best
      of the start and what is below it will do, so two trials: the paper's own
      shortcut, which assumes that optimal rates only fall with the budget.
    most_trials: at one place of the sweep.
  """

  def __init__(
    self,
    *,
    macro: str,
    start: float,
    factor: float,
    both_sides: bool,
    most_trials: int,
  ):
    require_int("tuning.GridSearch.most_trials", most_trials, 1)
    for name, value, least in (("start", start, 0), ("factor", factor, 1)):
      if not isinstance(value, (int, float)) or not least < value < math.inf:
        raise UserError(
          f"tuning.GridSearch.{name} = {value!r} cannot be used; bind it to a"
          f" number above {least}."
        )
    self.macro, self.start, self.factor = macro, float(start), float(factor)
    self.both_sides, self.most_trials = both_sides, most_trials

  def next_values(
    self, losses: Mapping[float, float], start: float | None = None
  ) -> list[float]:
    """Returns what to try next; nothing once the best is known.

    Args:
      losses: {value: loss} of the trials so far; one that diverged has an
        infinite loss, and is as good as tried.
      start: where to begin, such as a neighbour's optimum; None is `start`.
    """
    if not losses:
      return [self.start if start is None else start]
    if len(losses) >= self.most_trials:
      return []
    best = self.best(losses)
    if best is None:  # all diverged, which lower rates do less
      return [self._beside(min(losses), -1)]
    sides = [-1, 1] if self.both_sides else [-1]
    wanted = [self._beside(best, side) for side in sides]
    left = [value for value in wanted if not _has(losses, value)]
    return left[: self.most_trials - len(losses)]

  def best(self, losses: Mapping[float, float]) -> float | None:
    """Returns the value of the lowest finite loss, None if there is none."""
    finite = {v: loss for v, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda v: (finite[v], v), default=None)

  def is_edge(self, losses: Mapping[float, float]) -> bool:
    """Whether the best so far has a side that was not tried."""
    best = self.best(losses)
    return best is None or not all(
      _has(losses, self._beside(best, side)) for side in (-1, 1)
    )

  def _beside(self, value: float, side: int) -> float:
    # Counted from the start, so that all ways to a place end in one number.
    steps = round(math.log(value / self.start, self.factor))
    if _is_same(value, self.start * self.factor**steps):
      value, side = self.start, steps + side
    return float(f"{value * self.factor**side:.6g}")


def _has(losses: Mapping[float, float], value: float) -> bool:
  return any(_is_same(value, tried) for tried in losses)


def _is_same(a: float, b: float) -> bool:
  return math.isclose(a, b, rel_tol=1e-4)
