"""A sweep: one job at many points, shared by as many processes as there are."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Sequence

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.scaling import points
from nfnets_tf.scaling.board import DONE, FAILED, PENDING, RUNNING, Board
from nfnets_tf.scaling.engines import raising_on_sigterm
from nfnets_tf.scaling.points import Point
from nfnets_tf.scaling.tuning import GridSearch

LOGGER = logging.getLogger("nfnets_tf")

_ASKED_TO_END = (130, 143)
_MOST_STARTS = 3


class Sweep:
  """What is done at which points, and by what.

  The points are those of a grid. Where a number is tuned, each is a cell of
  several trials, and the search decides what is tried next from what is
  finished; nothing else is remembered, so that any process can go on.

  Args:
    grid: [{macro: value}, ...], as `config.grid` makes it.
    tuning: a `tuning.GridSearch`, or None.
    engine: runs the commands; one of `engines`.
    loss: name of the entry in a run's result.json that is compared.
    lease_seconds: after which a point of a process that shows no sign of life
      is another's.
    poll_seconds: between looks at what others have done.
    price: of a TPU-v4 core-hour, in any currency, or None.
    report: called with (board, table, sweep=, configuration=) whenever a point
      has ended, or None.
  """

  def __init__(
    self,
    *,
    grid: Sequence[dict],
    tuning: GridSearch | None,
    engine,
    loss: str,
    lease_seconds: float,
    poll_seconds: float,
    price: float | None,
    report: Callable | None,
  ):
    if not lease_seconds > 0 or not poll_seconds > 0:
      raise UserError(
        f"sweep.Sweep.lease_seconds = {lease_seconds!r} and poll_seconds ="
        f" {poll_seconds!r} cannot be used; bind both to numbers above 0."
      )
    if price is not None and not price >= 0:
      raise UserError(
        f"sweep.Sweep.price = {price!r} cannot be used; bind it to what a"
        " TPU-v4 core-hour costs, such as 1.61, or to None."
      )
    self.cells = points.cells_of(grid)
    self.tuning, self.engine, self.loss = tuning, engine, loss
    self.lease_seconds, self.poll_seconds = lease_seconds, poll_seconds
    self.price, self.report = price, report
    if tuning and any(tuning.macro in cell.bindings for cell in self.cells):
      raise UserError(
        f"{tuning.macro} is tuned and an axis of the sweep at the same time;"
        " leave out one of config.grid and sweep.Sweep.tuning."
      )

  def board(self, workdir: str) -> Board:
    """Returns the state of this sweep in a work directory."""
    return Board(workdir, lease_seconds=self.lease_seconds)

  def find(self, name: str) -> Point:
    """Returns the point of a name, a trial of a cell included.

    Raises:
      UserError: if there is none.
    """
    for cell in self.cells:
      if found := self._point(name, cell):
        return found
    example = (self.trials(self.cells[0], {}) or self.cells)[0].name
    raise UserError(
      f"--points={name} is no point of the sweep; expected 'list', 'plan',"
      f" 'left', 'failed', a number from 1 to {len(self.cells)}, a share such"
      f" as 1/4, or a name such as {example!r}."
    )

  def trials(self, cell: Point, records: dict[str, dict]) -> list[Point]:
    """Returns what is to be run in a cell by what is finished, in order.

    Args:
      cell: one of the sweep's.
      records: of finished points, by name.
    """
    if self.tuning is None:
      return [] if cell.name in records else [cell]
    losses = self.losses(cell, records)
    if any(math.isnan(loss) for loss in losses.values()):
      return []  # failed for a reason of its own, so nothing is known
    start = None
    if not losses:
      near = points.nearest_first(self.cells, cell)
      optima = (self.optimum(other, records) for other in near)
      start = next((value for value in optima if value is not None), None)
    values = self.tuning.next_values(losses, start)
    return [points.trial_of(cell, self.tuning.macro, v) for v in values]

  def losses(self, cell: Point, records: dict[str, dict]) -> dict[float, float]:
    """Returns {tuned value: loss} of a cell's finished trials.

    A trial that diverged has an infinite loss, one that failed otherwise none.
    """
    found = {}
    for record in records.values():
      # A folder may hold trials of other numbers, or of none.
      value = record["bindings"].get(self.tuning and self.tuning.macro)
      if record["cell"] == cell.name and value is not None:
        loss = math.inf if record.get("diverged") else math.nan
        if record["state"] == DONE:
          loss = record["result"].get(self.loss, math.nan)
        found[float(value)] = loss
    return found

  def optimum(self, cell: Point, records: dict[str, dict]) -> float | None:
    """Returns the tuned value of a cell once it is decided."""
    losses = self.losses(cell, records)
    if not losses or any(math.isnan(x) for x in losses.values()):
      return None
    if self.tuning.next_values(losses):
      return None
    return self.tuning.best(losses)

  def run(
    self,
    board: Board,
    cells: Sequence[Point],
    command: Callable[[Point], list[str]],
    refresh: Callable[[], None],
  ) -> None:
    """Runs what is left of some cells, with all who share the sweep.

    Args:
      board: state of the sweep.
      cells: that are to be finished.
      command: of a point.
      refresh: called when a point has ended.

    Raises:
      Preempted: if this process, or a point's, was asked to end.
    """
    running, starts = {}, {}
    with raising_on_sigterm() as asked:
      try:
        while True:
          left, elsewhere = self._left(board, cells, running)
          for point in left[: self.engine.at_once - len(running)]:
            starts[point.name] = starts.get(point.name, 0) + 1
            LOGGER.info("Starting %s.", point.name)
            log = board.log(point.name)
            self.engine.submit(point.name, command(point), log)
            running[point.name] = point
          if not running and not elsewhere:
            return
          for name, code in self.engine.wait(self.poll_seconds).items():
            self._account(board, running.pop(name), code, starts[name])
            refresh()
      except BaseException:
        asked.append(True)  # to be asked again does not end it earlier
        self.engine.stop()
        raise

  def _left(self, board, cells, running):
    """Returns (points to start, whether others still work at some)."""
    left, elsewhere = [], False
    busy = {*board.claims.names(), *running}
    records = board.records()  # later, so that what ends now is in one of both
    begun = board.begun() - busy - set(records)
    for cell in cells:
      trials = self.trials(cell, records)
      if not trials:
        continue
      working = {n for n in busy - set(records) if self._point(n, cell)}
      elsewhere = elsewhere or bool(working - set(running))
      new, room = [t for t in trials if t.name not in working], len(trials)
      if self.tuning:
        known = len(self.losses(cell, records))
        room = (self.tuning.most_trials if known else 1) - known - len(working)
        if not known:  # its start may have been another value then
          half = (self._point(name, cell) for name in sorted(begun))
          new = list(filter(None, half)) or new
      left += new[: max(room, 0)]
    return left, elsewhere

  def _point(self, name: str, cell: Point) -> Point | None:
    """Returns the point of a name if it is one of a cell's."""
    if self.tuning is None:
      return cell if name == cell.name else None
    if not name.startswith(points.trial_prefix(cell, self.tuning.macro)):
      return None
    with contextlib.suppress(ValueError):
      value = float(name.rpartition("=")[2])
      trial = points.trial_of(cell, self.tuning.macro, value)
      if trial.name == name and 0 < value < math.inf:
        return trial
    return None

  def _account(self, board: Board, point: Point, code: int, starts: int):
    if code in _ASKED_TO_END or code in (-signal.SIGTERM, -signal.SIGINT):
      raise Preempted
    state, often = board.state(point.name), starts >= _MOST_STARTS
    # Claimed still: another one works at it, or its machine is gone with it.
    lost = code or often if state == PENDING else code and often
    if state in (PENDING, RUNNING) and lost:
      why = f"its process ended with exit code {code}"
      if code < 0:
        why = f"its process was ended by {signal.Signals(-code).name}"
      fail(board, point, f"{why}; see {board.log(point.name)}")
    self._tell(board, point)

  def _tell(self, board: Board, point: Point) -> None:
    record = board.records().get(point.name)
    if record is None:
      return  # another process was faster
    if record["state"] == FAILED:
      LOGGER.warning("%s failed: %s", point.name, record["reason"])
    else:
      loss = record["result"].get(self.loss, math.nan)
      LOGGER.info("%s: %s %.4f", point.name, self.loss, loss)


def fail(board: Board, point: Point, reason: str, **content) -> None:
  """Writes down that a point has failed, and why."""
  board.write(
    point.name,
    FAILED,
    cell=point.cell,
    bindings=point.bindings,
    reason=reason,
    **content,
  )
