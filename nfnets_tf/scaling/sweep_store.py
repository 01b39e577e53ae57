"""The trials of a sweep and their outcomes, in files that all processes share.

Below the work directory of the sweep, local or gs://:

  points/NAME/             work directory of a trial, with its lock
  points/NAME/point.json   its values, written before it starts
  records/NAME.json        its outcome, written once it is done or has failed
  logs/NAME.log            the output of its processes
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping

import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_json, report_write_errors, write_atomically
from nfnets_tf.train.run_dir import RunLock

DONE, FAILED, RUNNING, PENDING = "done", "failed", "running", "pending"

_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep, and its outcome.

  Attributes:
    name: of its directory, such as "EPOCHS=0.25,VARIANT=F0,PEAK_LR=0.1".
    grid_point: name of the point of the grid that it belongs to; the same
      name unless a macro is tuned there.
    bindings: {macro: value} that it runs with.
    state: "done", "failed", "running" or "pending".
    result: of a trial that is done, the content of its result.json.
    seconds: that its last process took, if it is done.
    reason: of a failure, one sentence.
    diverged: whether it failed because its loss was not finite.
  """

  name: str
  grid_point: str
  bindings: Mapping[str, object]
  state: str = PENDING
  result: Mapping[str, object] = dataclasses.field(default_factory=dict)
  seconds: float | None = None
  reason: str | None = None
  diverged: bool = False


Trials = Mapping[str, Trial]  # by name


def point_name(bindings: Mapping) -> str:
  """Returns the readable directory name of a point, such as "A=1,B=F0"."""
  return ",".join(
    f"{_plain(macro)}={_plain(value)}" for macro, value in bindings.items()
  )


def _plain(value) -> str:
  if isinstance(value, (int, float)):
    return str(value)  # with its sign
  return _NOT_IN_NAMES.sub("-", str(value)).strip("-")


class SweepStore:
  """Reads and writes the files of a sweep.

  Args:
    root: work directory of the sweep, local or gs://.

  Attributes:
    config: path of config.gin.
    plan: path of plan.csv, the cost of each point.
    results: path of results.csv, the outcome of each trial.
    report: path of report.html.
  """

  def __init__(self, root: str):
    self.root = root
    self.config = os.path.join(root, "config.gin")
    self.plan = os.path.join(root, "plan.csv")
    self.results = os.path.join(root, "results.csv")
    self.report = os.path.join(root, "report.html")
    self._points = os.path.join(root, "points")
    self._records = os.path.join(root, "records")
    self._logs = os.path.join(root, "logs")
    if "://" in root:  # engines append to logs, which object stores cannot
      self._logs = os.path.join(
        tempfile.gettempdir(), f"nfnets_tf-{os.getpid()}"
      )
    self._done: dict[str, Trial] = {}  # never read again

  def folder(self, name: str) -> str:
    """Returns the work directory of a trial."""
    return os.path.join(self._points, name)

  def lock(self, name: str) -> RunLock:
    """Returns the lock of a trial's work directory."""
    return RunLock(self.folder(name))

  def log(self, name: str) -> str:
    """Returns the local path of a trial's log; creates its directory."""
    with report_write_errors(self._logs):
      tf.io.gfile.makedirs(self._logs)
    return os.path.join(self._logs, f"{name}.log")

  def trials(self) -> dict[str, Trial]:
    """Returns {name: trial} of all that were started, sorted by name."""
    names = {name.rstrip("/") for name in _list(self._points)}
    names.update(n[:-5] for n in _list(self._records) if n.endswith(".json"))
    trials = {name: self.trial(name) for name in sorted(names)}
    return {name: trial for name, trial in trials.items() if trial is not None}

  def trial(self, name: str) -> Trial | None:
    """Returns a trial as it is now, None if it was never started.

    Raises:
      UserError: if its record is not valid.
    """
    if name not in self._done:
      # In this order: a process writes the record before it unlocks.
      locked = self.lock(name).holder() is not None
      trial = self._read(self._record(name), name)
      if trial is None:
        trial = self._read(self._start(name), name)
        if trial is not None and locked:
          trial = dataclasses.replace(trial, state=RUNNING)
      if trial is None or trial.state != DONE:
        return trial
      self._done[name] = trial
    return self._done[name]

  def start(self, trial: Trial) -> None:
    """Records the values of a trial before it runs.

    All processes write the same content, so it does not matter which is last.
    """
    path = self._start(trial.name)
    if not tf.io.gfile.exists(path):
      self._write(path, dataclasses.replace(trial, state=PENDING))

  def finish(self, trial: Trial, state: str, **outcome) -> None:
    """Records the outcome of a trial.

    Args:
      trial: that has ended.
      state: DONE or FAILED.
      **outcome: further fields of `Trial`.
    """
    path = self._record(trial.name)
    self._write(path, dataclasses.replace(trial, state=state, **outcome))

  def forget_failures(self) -> None:
    """Makes all failed trials pending, except those that diverged."""
    for trial in self.trials().values():
      if trial.state == FAILED and not trial.diverged:
        self.start(trial)
        with contextlib.suppress(tf.errors.NotFoundError):
          tf.io.gfile.remove(self._record(trial.name))

  def _record(self, name: str) -> str:
    return os.path.join(self._records, f"{name}.json")

  def _start(self, name: str) -> str:
    return os.path.join(self.folder(name), "point.json")

  def _write(self, path: str, trial: Trial) -> None:
    with report_write_errors(self.root):
      tf.io.gfile.makedirs(os.path.dirname(path))
    content = json.dumps(dataclasses.asdict(trial), indent=1)
    write_atomically(path, content + "\n")

  def _read(self, path: str, name: str) -> Trial | None:
    try:
      trial = Trial(**read_json(path))
    except tf.errors.NotFoundError:
      return None  # perhaps removed since the listing
    except (UserError, TypeError) as error:
      raise UserError(
        f"{path!r} is not a valid record; delete it to resume the point from"
        " its checkpoints."
      ) from error
    return trial if trial.name == name else None  # a renamed copy


def _list(folder: str) -> list[str]:
  try:
    return tf.io.gfile.listdir(folder)
  except tf.errors.NotFoundError:
    return []
