"""Runs the points of a sweep that `--points` selects: all, a share, or one.

A driver starts a process for each trial, with its own command line and
`--points=NAME`, so that a trial that crashes takes no other one with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import pandas as pd

from nfnets_tf.config import Configuration
from nfnets_tf.errors import (
  Diverged,
  NothingToDo,
  Preempted,
  RunError,
  UserError,
)
from nfnets_tf.fileio import write_atomically
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.models import cost
from nfnets_tf.progress import counted
from nfnets_tf.scaling import sweep_tables
from nfnets_tf.scaling.sweep import GridPoint, select_points
from nfnets_tf.scaling.sweep_store import (
  DONE,
  FAILED,
  SweepStore,
  Trial,
  Trials,
)
from nfnets_tf.scaling.sweep_tables import SweepStatus
from nfnets_tf.train.distribution import read_cluster
from nfnets_tf.train.run_dir import RunDir, RunLocked

_NUMBERS = re.compile(r"\d+(/\d+)?")
_NETWORK = "run_config.ModelConfig.network"


class SweepJob:
  """The sweep of a configuration in a work directory.

  Args:
    configuration: of the sweep.
    workdir: of the sweep, shared by all its processes, local or gs://.
    command: of this process without `--points`, to start trials with.

  Raises:
    UserError: if the configuration is not a sweep, or is refused.
  """

  def __init__(
    self,
    configuration: Configuration,
    workdir: str,
    command: Sequence[str] = (),
  ):
    if not configuration.is_sweep:
      raise UserError(
        "--points is given, but the configuration is not a sweep; bind"
        " config.Launch.sweep = @sweep.Sweep(), as gin/sweeps does, or remove"
        " --points."
      )
    self._configuration, self._command = configuration, command
    self._sweep = configuration.build_sweep()
    self._store = SweepStore(workdir)
    self._networks = {}

  def plan(self) -> str:
    """Returns the cost of each point as text; writes nothing."""
    return self._describe(self._plan())

  def run(
    self,
    selection: str,
    *,
    terminal: TextIO | None,
    on_start: Callable[[str], None] = lambda folder: None,
  ) -> str:
    """Runs what `--points` selects; returns the summary to print.

    Args:
      selection: "left", "failed", "list", "plan", a number, a share K/N, or
        the name of a trial.
      terminal: where a progress bar can be drawn, or None.
      on_start: called with the directory for logs once all input has been
        accepted.

    Raises:
      UserError: if the selection or the configuration is invalid.
      NothingToDo: if another process or host runs the trial, or it is done.
      RunError: if trials have failed.
    """
    sweep, store = self._sweep, self._store
    if selection == "list":
      _, results = self._tables(store.trials())
      return sweep_tables.describe_results(results, sweep.loss)
    if selection == "plan":
      plan = self._plan()
      sweep_tables.write_table(plan, store.plan)
      return f"{self._describe(plan)}\n\nAs CSV: {store.plan}"
    _check_host()
    points = sweep.points
    if _NUMBERS.fullmatch(selection):
      points = select_points(points, selection)
    elif selection == "failed":
      store.forget_failures()
    elif selection != "left":
      trial = sweep.find(selection, store.trials())
      return self._run_trial(trial, terminal, on_start)
    if len(points) == 1 and sweep.tuning is None:
      trial = sweep.find(points[0].name, {})
      summary = self._run_trial(trial, terminal, on_start)
      if read_cluster() is None:
        self._refresh(store.trials())
      return summary
    return self._run_points(points, on_start)

  def _run_points(self, points: Sequence[GridPoint], on_start) -> str:
    if read_cluster() is not None:
      raise UserError(
        "TF_CONFIG is set, so this process is one of several workers, and only"
        " single points can be trained by all of them; run each with the same"
        " --points=NAME on all workers."
      )
    self._configuration.check_workdir(self._store.config)
    plan = sweep_tables.read_plan(self._store.plan)
    if plan is None or {*plan["point"]} != {p.name for p in self._sweep.points}:
      plan = self._plan()  # before anything is written: it builds all jobs
      sweep_tables.write_table(plan, self._store.plan)
    write_atomically(self._store.config, self._configuration.text)
    on_start(self._store.root)
    self._sweep.run(self._store, points, self._command, self._refresh)
    return self._summary(points)

  def _run_trial(self, trial: Trial, terminal, on_start) -> str:
    """Locks a trial, starts or resumes its job, and records the outcome."""
    store = self._store
    self._check_open(trial)
    cluster = read_cluster()
    if cluster is not None and cluster.index:
      # The chief locks and records for all workers.
      return self._run_job(trial, terminal, on_start)
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(store.lock(trial.name).hold())
      except RunLocked as error:
        raise NothingToDo(str(error)) from error
      self._check_open(trial)  # another process may just have finished it
      store.start(trial)
      start_time = time.monotonic()
      try:
        summary = self._run_job(trial, terminal, on_start)
        result = RunDir(store.folder(trial.name)).read_result() or {}
        _check_loss(trial, result, self._sweep.loss)
      except (Preempted, NothingToDo):
        raise
      except Exception as error:
        diverged = isinstance(error, Diverged)
        store.finish(trial, FAILED, reason=_reason(error), diverged=diverged)
        raise
      seconds = time.monotonic() - start_time
      store.finish(trial, DONE, result=result, seconds=seconds)
    return summary

  def _check_open(self, trial: Trial) -> None:
    known = self._store.trial(trial.name)
    if known is not None and known.state == DONE:
      folder = self._store.folder(trial.name)
      raise NothingToDo(f"{trial.name} is already done ({folder}).")

  def _run_job(self, trial: Trial, terminal, on_start) -> str:
    single = self._configuration.at(trial.bindings)
    files = RunDir(self._store.folder(trial.name))
    files.check_layout()
    single.check_workdir(files.config)
    context = RunContext(
      files.root, single.text, terminal, lambda: on_start(files.root)
    )
    return single.build_job().run(context)

  def _plan(self) -> pd.DataFrame:
    points = counted(self._sweep.points, "Estimating the cost of points")
    return sweep_tables.plan_table(points, self._figures, self._sweep.price)

  def _describe(self, plan: pd.DataFrame) -> str:
    tuning = self._sweep.tuning
    trials = 1 if tuning is None else 2 + bool(tuning.both_sides)
    return sweep_tables.describe_plan(plan, trials=trials)

  def _figures(self, point: GridPoint) -> Mapping[str, float]:
    trial = self._sweep.next_trials(point, {})[0]
    single = self._configuration.at(trial.bindings)
    job = single.build_job()
    # The largest networks take seconds to build, and few points differ in it.
    part = tuple(single.part(_NETWORK).items())
    if part not in self._networks:
      self._networks[part] = cost.abstractly(job.model.network)
    return job.figures(self._networks[part])

  def _tables(self, trials: Trials) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """Returns the plan, if there is one, and the results."""
    plan = sweep_tables.read_plan(self._store.plan)
    return plan, sweep_tables.results_table(self._sweep, trials, plan)

  def _refresh(self, trials: Trials) -> None:
    """Writes results.csv and the report."""
    sweep, store = self._sweep, self._store
    plan, results = self._tables(trials)
    sweep_tables.write_table(results, store.results)
    if sweep.report is not None:
      status = SweepStatus(
        name=os.path.basename(store.root.rstrip("/")) or store.root,
        loss=sweep.loss,
        tuned=sweep.tuning.macro if sweep.tuning else None,
        grid={point.name: point.bindings for point in sweep.points},
        results=results,
        plan=plan,
        metrics_files={n: RunDir(store.folder(n)).metrics for n in trials},
        config_text=self._configuration.text,
      )
      sweep.report(status, store.report)

  def _summary(self, points: Sequence[GridPoint]) -> str:
    _, results = self._tables(self._store.trials())
    names = [point.name for point in points]
    results = results[results["grid_point"].isin(names)]
    failed = results[(results["state"] == FAILED) & ~results["diverged"]]
    if len(failed):
      first = failed.iloc[0]
      raise RunError(
        f"{len(failed)} of {len(results)} points failed, the first one"
        f" {first['point']} ({first['reason'].rstrip('.')}); fix the cause and"
        " rerun with --points=failed."
      )
    states = sweep_tables.describe_results(results, self._sweep.loss)
    return f"{states}\n\nresults  {self._store.results}"


def _check_loss(trial: Trial, result: Mapping, loss: str) -> None:
  if not isinstance(result.get(loss), (int, float)):
    raise UserError(
      f"sweep.Sweep.loss = {loss!r} is not a number in the result of"
      f" {trial.name}; expected one of {', '.join(sorted(result))}."
    )
  if not math.isfinite(result[loss]):
    raise Diverged(
      f"the {loss} of {trial.name} is {result[loss]}; lower its learning rate."
    )


def _reason(error: Exception) -> str:
  first = (str(error) or "no message").splitlines()[0]
  if isinstance(error, (UserError, RunError)):
    return first
  return f"{type(error).__name__}: {first}"


def _check_host() -> None:
  worker = os.environ.get("TPU_WORKER_ID", "0").strip()
  if worker not in ("", "0"):
    raise NothingToDo(
      f"TPU_WORKER_ID = {worker}: the first host of the slice runs the sweep,"
      " also on the chips of this host; nothing to do here."
    )
