"""What has become of each point of a sweep, in files that all can see."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time

import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_json, report_write_errors, write_atomically
from nfnets_tf.scaling.claims import Claims

DONE, FAILED, RUNNING, PENDING = "done", "failed", "running", "pending"


class Board:
  """The files of a sweep below one folder, local or gs://.

  Args:
    root: the sweep's work directory.
    lease_seconds: see `claims.Claims`.

  Attributes:
    claims: who works at what.
    plan: path of plan.csv, what each point costs.
    results: path of results.csv, what has come of each.
    page: path of the report.
  """

  def __init__(self, root: str, *, lease_seconds: float):
    self.root = root
    self.claims = Claims(
      os.path.join(root, "claims"), lease_seconds=lease_seconds
    )
    self.plan = os.path.join(root, "plan.csv")
    self.results = os.path.join(root, "results.csv")
    self.page = os.path.join(root, "report.html")
    self._records = os.path.join(root, "records")
    self._logs = os.path.join(root, "logs")
    if "://" in root:  # an engine appends, so its files are local
      self._logs = os.path.join(
        tempfile.gettempdir(), f"nfnets_tf-{os.getpid()}"
      )
    self._known: dict[str, dict] = {}

  def folder(self, name: str) -> str:
    """Returns the work directory of a point's run."""
    return os.path.join(self.root, "points", name)

  def begun(self) -> set[str]:
    """Returns the names of points that have a folder."""
    folder = os.path.join(self.root, "points")
    if not tf.io.gfile.exists(folder):
      return set()
    return {name.rstrip("/") for name in tf.io.gfile.listdir(folder)}

  def log(self, name: str) -> str:
    """Returns the path of what a point's process says; makes its folder.

    It is local, in a folder for temporary files where the sweep's is not.
    """
    with report_write_errors(self._logs):
      tf.io.gfile.makedirs(self._logs)
    return os.path.join(self._logs, f"{name}.log")

  def records(self) -> dict[str, dict]:
    """Returns {name of a point: its record} of all that are done or failed."""
    found = {}
    if tf.io.gfile.exists(self._records):
      for file in sorted(tf.io.gfile.listdir(self._records)):
        if file.endswith(".json"):
          name = file[: -len(".json")]
          if record := self._known.get(name) or self._read(name):
            found[name] = record
    # What is done stays as it is.
    self._known = {n: r for n, r in found.items() if r["state"] == DONE}
    return found

  def state(self, name: str) -> str:
    """Returns what state a point is in."""
    if record := self._read(name):
      return record["state"]
    return RUNNING if self.claims.owner(name) else PENDING

  def write(self, name: str, state: str, **content) -> None:
    """Writes the record of a point that is done or has failed.

    Args:
      name: of the point.
      state: DONE or FAILED.
      **content: anything else to be known of it.
    """
    with report_write_errors(self._records):
      tf.io.gfile.makedirs(self._records)
    record = {"state": state, **content, "ended": time.time()}
    write_atomically(self._record(name), json.dumps(record, indent=1) + "\n")

  def forget_failure(self, name: str) -> None:
    """Makes a failed point one that is left to do."""
    if self.state(name) == FAILED:
      with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(self._record(name))

  def _record(self, name: str) -> str:
    return os.path.join(self._records, f"{name}.json")

  def _read(self, name: str) -> dict | None:
    path = self._record(name)
    try:
      return read_json(path)
    except tf.errors.NotFoundError:
      return None  # perhaps since a moment ago
    except UserError as error:
      raise UserError(
        f"{path!r} is no record of a point; remove it, and the point is done"
        " from where its checkpoints are."
      ) from error
