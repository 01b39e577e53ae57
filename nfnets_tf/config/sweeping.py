"""Doing what `--points` says of a sweep: all of it, a part, one point, or none.

Each point is a process of its own, of the same command with `--points=NAME`, so
that one that dies takes no other with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TextIO

import pandas as pd

from nfnets_tf.config import Configuration
from nfnets_tf.config.one_point import run_point
from nfnets_tf.errors import NothingToDo, RunError, UserError
from nfnets_tf.fileio import write_atomically
from nfnets_tf.models import cost
from nfnets_tf.scaling import sweep_plan
from nfnets_tf.scaling.board import FAILED
from nfnets_tf.scaling.points import Point, select_cells
from nfnets_tf.train.distribution import read_cluster

_NUMBERS = re.compile(r"\d+(/\d+)?")


class SweepRun:
  """A configuration's sweep in a work directory.

  Args:
    configuration: of a sweep.
    workdir: of the sweep, shared by all that work at it, local or gs://.
    command: that began this process, without `--points`; None where nothing
      is run.

  Raises:
    UserError: if the configuration is refused, or is none of a sweep.
  """

  def __init__(
    self,
    configuration: Configuration,
    workdir: str,
    command: Sequence[str] | None = None,
  ):
    if not configuration.is_sweep:
      raise UserError(
        "--points was given, but the configuration is no sweep; bind"
        " config.Launch.sweep = @sweep.Sweep(), as gin/sweeps does, or leave"
        " --points out."
      )
    self._configuration, self._workdir = configuration, workdir
    self._command = list(command or ())
    self._sweep = configuration.build_sweep()
    self._board = self._sweep.board(workdir)
    self._networks = []

  def plan(self) -> str:
    """Returns what each point would cost; writes nothing."""
    return self._describe(self._plan())

  def run(
    self,
    given: str,
    *,
    terminal: TextIO | None,
    started: Callable[[str], None] = lambda folder: None,
  ) -> str:
    """Does what `--points` says; returns what there is to say at the end.

    Args:
      given: "left", "failed", "list", "plan", a number, a share K/N, or the
        name of a point.
      terminal: where a progress bar can be drawn, or None.
      started: called with the folder for logs, once all has been accepted.

    Raises:
      UserError: if it cannot be used.
      NothingToDo: if another process or host works at the point.
      RunError: if points have failed.
    """
    if given == "list":
      return sweep_plan.describe_states(self._results(), self._sweep.loss)
    if given == "plan":
      plan = self._plan()
      sweep_plan.write_table(plan, self._board.plan, self._workdir)
      return f"{self._describe(plan)}\n\nThe same as CSV: {self._board.plan}"
    _check_host()
    cells = self._sweep.cells
    if _NUMBERS.fullmatch(given):
      cells = select_cells(cells, given)
    elif given == "failed":
      for name, record in self._board.records().items():
        if record["state"] == FAILED and not record.get("diverged"):
          self._board.forget_failure(name)
    elif given != "left":
      return self._run_point(self._sweep.find(given), terminal, started)
    if len(cells) == 1 and self._sweep.tuning is None:
      summary = self._run_point(cells[0], terminal, started)
      if read_cluster() is None:
        self._refresh()
      return summary
    return self._run_cells(cells, started)

  def _run_cells(self, cells: Sequence[Point], started) -> str:
    if read_cluster() is not None:
      raise UserError(
        "TF_CONFIG is set, so this process is one of several that train"
        " together, and a sweep would start each point alone; give all of them"
        " the same --points=NAME, one point after the other."
      )
    path = os.path.join(self._workdir, "config.gin")
    self._configuration.check_workdir(path)
    before = sweep_plan.read_table(self._board.plan)
    wanted = {cell.name for cell in self._sweep.cells}
    if before is None or set(before["point"]) != wanted:
      sweep_plan.write_table(self._plan(), self._board.plan, self._workdir)
    write_atomically(path, self._configuration.text)
    started(self._workdir)
    self._refresh()
    self._sweep.run(self._board, cells, self._command_of, self._refresh)
    self._refresh()
    return self._summary(cells)

  def _run_point(self, point: Point, terminal, started) -> str:
    return run_point(
      self._configuration.at(point.bindings),
      self._board,
      point,
      loss=self._sweep.loss,
      terminal=terminal,
      started=started,
    )

  def _command_of(self, point: Point) -> list[str]:
    return [*self._command, f"--points={point.name}"]

  def _plan(self) -> pd.DataFrame:
    return sweep_plan.plan_sweep(
      self._sweep.cells, self._figures, self._sweep.price
    )

  def _describe(self, plan: pd.DataFrame) -> str:
    tuning = self._sweep.tuning
    least = 1 if tuning is None else 2 + bool(tuning.both_sides)
    return sweep_plan.describe_plan(plan, trials=least)

  def _figures(self, cell: Point) -> dict:
    point = self._sweep.trials(cell, {})[0]
    alone = self._configuration.at(point.bindings)
    job = alone.build_job()
    # The largest takes seconds to build, and few points differ in it.
    part = alone.part("run_config.ModelConfig.network")
    network = next((n for p, n in self._networks if p == part), None)
    if network is None:
      network = cost.abstractly(job.model.network)
      self._networks.append((part, network))
    return job.figures(network)

  def _results(self) -> pd.DataFrame:
    records = self._board.records()
    cells = self._sweep.cells
    left = [point for c in cells for point in self._sweep.trials(c, records)]
    return sweep_plan.gather_results(self._board, cells, left)

  def _refresh(self) -> None:
    results = self._results()
    sweep_plan.write_table(results, self._board.results, self._workdir)
    if self._sweep.report is not None:
      self._sweep.report(
        self._board,
        results,
        sweep=self._sweep,
        configuration=self._configuration.text,
      )

  def _summary(self, cells: Sequence[Point]) -> str:
    results = self._results()
    results = results[results["cell"].isin([cell.name for cell in cells])]
    failed = results[results["state"] == FAILED]
    lost = failed[~failed["point"].map(self._diverged)]
    if len(lost):
      raise RunError(
        f"{len(lost)} of {len(results)} points failed, first"
        f" {lost['point'].iloc[0]} ({lost['reason'].iloc[0].rstrip('.')});"
        " mend it, and --points=failed does them again."
      )
    states = sweep_plan.describe_states(results, self._sweep.loss)
    return f"{states}\n\nresults  {self._board.results}"

  def _diverged(self, name: str) -> bool:
    return bool(self._board.records()[name].get("diverged"))


def _check_host() -> None:
  worker = os.environ.get("TPU_WORKER_ID", "0").strip()
  if worker not in ("", "0"):
    raise NothingToDo(
      f"TPU_WORKER_ID = {worker}: the first host of the slice runs the sweep,"
      " with the chips of this one; there is nothing to do here."
    )
