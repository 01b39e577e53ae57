"""A sweep: one job at many points, shared by any number of processes."""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.ranges import accepts, flag, integer, number, optional
from nfnets_tf.scaling.engines import Engine, raising_on_sigterm
from nfnets_tf.scaling.sweep_store import (
  DONE,
  FAILED,
  PENDING,
  RUNNING,
  SweepStore,
  Trial,
  Trials,
  point_name,
)

if TYPE_CHECKING:
  from nfnets_tf.scaling.sweep_tables import SweepStatus

LOGGER = logging.getLogger("nfnets_tf")

_TERMINATED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
_MAX_STARTS = 3
_MAX_NAME = 210  # of 255; a tuned value and the ends of files' names follow


@dataclasses.dataclass(frozen=True)
class GridPoint:
  """A combination of the values of a sweep's axes.

  Attributes:
    name: such as "EPOCHS=0.25,VARIANT=F0".
    bindings: {macro: value}.
  """

  name: str
  bindings: Mapping[str, object]


def grid_points(grid: Sequence[Mapping]) -> list[GridPoint]:
  """Returns the points of a grid with their names.

  Args:
    grid: {macro: value} of each.

  Raises:
    UserError: if there are none, or two would share a directory.
  """
  if not grid:
    raise UserError(
      "the sweep has no points; bind an axis, such as config.grid.EPOCHS ="
      " (0.25, 0.5, 1)."
    )
  points = [GridPoint(point_name(b), dict(b)) for b in grid]
  for name, count in collections.Counter(p.name for p in points).items():
    if count > 1:
      raise UserError(
        f"{count} points of the sweep are named {name!r}; give each axis values"
        " that differ in letters or digits."
      )
    if len(name.encode()) > _MAX_NAME:
      raise UserError(
        f"{name!r} is too long for a folder; give the axes shorter values."
      )
  return points


def nearest_first(
  points: Sequence[GridPoint], point: GridPoint
) -> list[GridPoint]:
  """Returns the other points, those with the fewest steps on the grid first."""
  table = pd.DataFrame([p.bindings for p in points], dtype=object)
  # Place of each value along its axis, in the order of the grid.
  places = table.apply(lambda values: pd.factorize(values.map(repr))[0])
  here = points.index(point)
  distances = (places - places.iloc[here]).abs().sum(axis=1)
  order = distances.sort_values(kind="stable").index
  return [points[i] for i in order if i != here]


def select_points(
  points: Sequence[GridPoint], selection: str
) -> list[GridPoint]:
  """Returns the points that `--points` selects by number.

  Args:
    points: all of them, in order.
    selection: "7" is the seventh; "3/12" are the third, fifteenth, and so on.

  Raises:
    UserError: if a number is out of range.
  """
  first, _, count = selection.partition("/")
  first, step = int(first), int(count or len(points))
  if not 1 <= first <= step:
    raise UserError(
      f"--points={selection} is invalid; expected a number from 1 to"
      f" {len(points)}, or a share K/N with K from 1 to N."
    )
  return list(points[first - 1 :: step])


@accepts(
  start=number(above=0),
  factor=number(above=1),
  both_sides=flag(),
  most_trials=integer(1),
)
class GridSearch:
  """Tunes one macro on a grid of values that are spaced by a factor.

  The paper tunes learning rates "on a small logarithmic grid", "spaced by
  factors of 2", for each model and epoch budget separately (section 2). Here a
  search starts at the optimum of a neighbor in the sweep, moves to the better
  side, and stops when both sides are worse: three trials where the neighbor's
  optimum holds.

  Args:
    macro: to tune, such as "PEAK_LR".
    start: its first value where no neighbor is decided yet, > 0.
    factor: between neighbors on the grid, > 1; 2 in the paper.
    both_sides: whether the values on both sides of the best one must be tried.
      If not, only the lower one, so two trials are enough: the paper's
      shortcut, which assumes that optimal rates only fall as budgets rise.
    most_trials: at one point of the sweep.
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
    self.macro, self.start, self.factor = macro, float(start), float(factor)
    self.both_sides, self.most_trials = both_sides, most_trials

  def next_values(
    self, losses: Mapping[float, float], start: float | None = None
  ) -> list[float]:
    """Returns the values to try next; none once the optimum is known.

    Args:
      losses: {value: loss} of the trials so far; infinite if one diverged.
      start: the first value, such as a neighbor's optimum; None is `start`.
    """
    if not losses:
      return [self.start if start is None else start]
    if len(losses) >= self.most_trials:
      return []
    best = self.best(losses)
    if best is None:  # all diverged; lower rates do so less
      return [self._step(min(losses), -1)]
    sides = [-1, 1] if self.both_sides else [-1]
    values = [self._step(best, side) for side in sides]
    new = [v for v in values if not any(_is_same(v, tried) for tried in losses)]
    return new[: self.most_trials - len(losses)]

  def best(self, losses: Mapping[float, float]) -> float | None:
    """Returns the value with the lowest finite loss, None if there is none."""
    finite = {v: loss for v, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda v: (finite[v], v), default=None)

  def _step(self, value: float, side: int) -> float:
    # Computed from the start: all paths to a value give the same number.
    steps = round(math.log(value / self.start, self.factor))
    if _is_same(value, self.start * self.factor**steps):
      value, side = self.start, steps + side
    return float(f"{value * self.factor**side:.6g}")


def _is_same(a: float, b: float) -> bool:
  return math.isclose(a, b, rel_tol=1e-4)


@accepts(poll_seconds=number(above=0), price=optional(number(0)))
class Sweep:
  """The points of a sweep, the search at each of them, and what runs it.

  Which trials come next follows from the outcomes in the store alone, so any
  process can continue.

  Args:
    grid: [{macro: value}, ...], as `config.grid` returns it.
    tuning: a `GridSearch` at every point, or None for one trial each.
    engine: runs the commands; one of `scaling.engines`.
    loss: entry of a run's result.json to compare.
    poll_seconds: between checks for what other processes have done.
    price: of a TPU-v4 core-hour, in any currency, or None.
    report: called with a `SweepStatus` and the path of report.html whenever a
      trial has ended, or None.
  """

  def __init__(
    self,
    *,
    grid: Sequence[Mapping],
    tuning: GridSearch | None,
    engine: Engine,
    loss: str,
    poll_seconds: float,
    price: float | None,
    report: Callable[[SweepStatus, str], None] | None,
  ):
    self.points = grid_points(grid)
    self.tuning, self.engine, self.loss = tuning, engine, loss
    self.poll_seconds, self.price, self.report = poll_seconds, price, report
    if tuning and any(tuning.macro in point.bindings for point in self.points):
      raise UserError(
        f"{tuning.macro} is both tuned and an axis of the sweep; remove it from"
        " config.grid, or bind sweep.Sweep.tuning to None."
      )

  def find(self, name: str, trials: Trials) -> Trial:
    """Returns the trial of a name that `--points` gives.

    Args:
      name: of a trial that was started or that comes next.
      trials: those of the store.

    Raises:
      UserError: if there is none.
    """
    for point in self.points:
      known = self.trials_at(point, trials)
      for trial in [*known, *self.next_trials(point, trials)]:
        if trial.name == name:
          return trial
    example = self.next_trials(self.points[0], {})[0].name
    raise UserError(
      f"--points={name} is invalid; expected left, failed, list, plan, a number"
      f" from 1 to {len(self.points)}, a share such as 1/4, or a name from"
      f" --points=list, such as {example!r}."
    )

  def trials_at(self, point: GridPoint, trials: Trials) -> list[Trial]:
    """Returns the started trials of a point, lowest tuned value first."""
    tuned = (self.tuning.macro,) if self.tuning else ()
    # The store may also hold trials of another macro, or of none.
    same = [
      trial
      for trial in trials.values()
      if trial.grid_point == point.name
      and set(trial.bindings) == {*point.bindings, *tuned}
    ]
    same.sort(key=lambda trial: [trial.bindings[macro] for macro in tuned])
    # With the values of the grid, since JSON turns tuples into lists.
    return [
      dataclasses.replace(t, bindings={**t.bindings, **point.bindings})
      for t in same
    ]

  def next_trials(self, point: GridPoint, trials: Trials) -> list[Trial]:
    """Returns the trials that a point needs next, in order.

    Those that another process is running are among them; none once the point
    is decided.
    """
    known = {trial.name: trial for trial in self.trials_at(point, trials)}
    if self.tuning is None:
      trial = known.get(point.name) or self._trial(point)
      return [trial] if trial.state in (RUNNING, PENDING) else []
    losses = self.losses(point, trials)
    if any(map(math.isnan, losses.values())):
      return []  # a failure that says nothing about the value
    start = None
    if not losses:
      if known:  # started from the outcomes known then
        return list(known.values())
      neighbors = nearest_first(self.points, point)
      optima = (self.optimum(other, trials) for other in neighbors)
      start = next((value for value in optima if value is not None), None)
    values = self.tuning.next_values(losses, start)
    new = [self._trial(point, value) for value in values]
    return [known.get(trial.name, trial) for trial in new]

  def losses(self, point: GridPoint, trials: Trials) -> dict[float, float]:
    """Returns {tuned value: loss} of the trials of a point that have ended.

    The loss is infinite if a trial diverged, NaN if it failed otherwise.
    """
    losses = {}
    for trial in self.trials_at(point, trials) if self.tuning else ():
      loss = math.inf if trial.diverged else math.nan
      if trial.state in (DONE, FAILED):
        value = float(trial.bindings[self.tuning.macro])
        losses[value] = trial.result.get(self.loss, loss)
    return losses

  def optimum(self, point: GridPoint, trials: Trials) -> float | None:
    """Returns the tuned value of a point once it is decided."""
    losses = self.losses(point, trials)
    failed = any(map(math.isnan, losses.values()))
    if not losses or failed or self.tuning.next_values(losses):
      return None
    return self.tuning.best(losses)

  def run(
    self,
    store: SweepStore,
    points: Sequence[GridPoint],
    command: Sequence[str],
    refresh: Callable[[Trials], None],
  ) -> None:
    """Runs all trials that some points need, together with other processes.

    Args:
      store: of the sweep.
      points: to finish.
      command: of a trial's process, to which `--points=NAME` is added.
      refresh: called with the trials at the start and when one has ended.

    Raises:
      Preempted: if this process, or that of a trial, received SIGTERM.
    """
    running: dict[str, Trial] = {}
    starts, ended = collections.Counter(), None
    with raising_on_sigterm() as terminating:
      try:
        while True:
          trials = store.trials()
          if ended != {}:
            refresh(trials)
          ready, wait = self._ready(points, trials, running)
          for trial in ready[: self.engine.at_once - len(running)]:
            starts[trial.name] += 1
            LOGGER.info("Starting %s.", trial.name)
            store.start(trial)
            arguments = [*command, f"--points={trial.name}"]
            self.engine.submit(trial.name, arguments, store.log(trial.name))
            running[trial.name] = trial
          if not running and not wait:
            return
          ended = self.engine.wait(self.poll_seconds)
          for name, code in ended.items():
            self._account(store, running.pop(name), code, starts[name])
      except BaseException:
        terminating.append(True)  # a second signal must not cut this short
        self.engine.stop()
        raise

  def _ready(self, points, trials, running) -> tuple[list[Trial], bool]:
    """Returns (trials to start, whether other processes run some)."""
    ready, elsewhere = [], False
    for point in points:
      new = self.next_trials(point, trials)
      if not new:
        continue
      mine = {n for n, t in running.items() if t.grid_point == point.name}
      busy = mine | {
        t.name for t in self.trials_at(point, trials) if t.state == RUNNING
      }
      elsewhere = elsewhere or busy != mine
      ended = len(self.losses(point, trials))
      most = self.tuning.most_trials if ended else 1
      room = max(most - ended - len(busy), 0)
      ready += [trial for trial in new if trial.name not in busy][:room]
    return ready, elsewhere

  def _trial(self, point: GridPoint, value: float | None = None) -> Trial:
    bindings = dict(point.bindings)
    if self.tuning:
      bindings[self.tuning.macro] = value
    return Trial(point_name(bindings), point.name, bindings)

  def _account(self, store, trial: Trial, code: int, starts: int) -> None:
    """Logs the outcome of a process, or records that it left none."""
    if code in _TERMINATED:
      raise Preempted
    outcome = store.trial(trial.name) or trial
    # A locked one may be running elsewhere; if its machine was lost, the lock
    # expires.
    failed = outcome.state == PENDING and code != 0
    often = outcome.state in (PENDING, RUNNING) and starts >= _MAX_STARTS
    if failed or often:
      how = f"ended with exit code {code}"
      if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
      reason = f"its process {how}; see {store.log(trial.name)}"
      store.finish(trial, FAILED, reason=reason)
      outcome = store.trial(trial.name)
    if outcome.state == FAILED:
      LOGGER.warning("%s failed: %s", trial.name, outcome.reason)
    elif outcome.state == DONE:
      loss = outcome.result.get(self.loss, math.nan)
      LOGGER.info("%s: %s %.4f", trial.name, self.loss, loss)
