"""Running one point of a sweep in this process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TextIO

from nfnets_tf.config import Configuration
from nfnets_tf.errors import (
  Diverged,
  NothingToDo,
  Preempted,
  RunError,
  UserError,
)
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.scaling.board import DONE, Board
from nfnets_tf.scaling.points import Point
from nfnets_tf.scaling.sweep import fail
from nfnets_tf.train.distribution import read_cluster
from nfnets_tf.train.run_dir import RunDir


def run_point(
  alone: Configuration,
  board: Board,
  point: Point,
  *,
  loss: str,
  terminal: TextIO | None,
  started: Callable[[str], None],
) -> str:
  """Claims a point, runs its job where it was left, and records what came.

  Args:
    alone: configuration of the point.
    board: state of the sweep.
    point: that is run.
    loss: name of the entry of its result that must be a finite number.
    terminal: where a progress bar can be drawn, or None.
    started: called with the point's folder once the job has been accepted.

  Returns:
    The job's summary.

  Raises:
    NothingToDo: if it is done, or another process works at it.
    Diverged: if its loss is not finite.
    UserError: if its result has no such entry.
  """
  folder = board.folder(point.name)
  _check_open(board, point)
  cluster = read_cluster()
  if cluster is not None and cluster.index:
    # The chief holds the lease and writes for all.
    return _run_job(alone, folder, terminal, started)
  if not board.claims.take(point.name):
    owner = board.claims.owner(point.name) or "another process"
    raise NothingToDo(f"{owner} works at {point.name} already.")
  with board.claims.held(point.name):
    _check_open(board, point)  # another one may have ended in between
    begin = time.monotonic()
    try:
      summary = _run_job(alone, folder, terminal, started)
      result = RunDir(folder).read_result() or {}
      _check_loss(point, result, loss)
    except (Preempted, NothingToDo):
      raise
    except Exception as error:
      diverged = isinstance(error, Diverged)
      fail(board, point, _reason(error), diverged=diverged)
      raise
    board.write(
      point.name,
      DONE,
      cell=point.cell,
      bindings=point.bindings,
      result=result,
      seconds=time.monotonic() - begin,
    )
  return summary


def _check_open(board: Board, point: Point) -> None:
  if board.state(point.name) == DONE:
    folder = board.folder(point.name)
    raise NothingToDo(f"{point.name} is done already ({folder}).")


def _run_job(alone: Configuration, folder: str, terminal, started) -> str:
  alone.check_workdir(os.path.join(folder, "config.gin"))
  return alone.build_job().run(
    RunContext(folder, alone.text, terminal, on_start=lambda: started(folder))
  )


def _check_loss(point: Point, result: dict, loss: str) -> None:
  if not isinstance(result.get(loss), (int, float)):
    raise UserError(
      f"the result of {point.name} has no number {loss!r}, only"
      f" {', '.join(sorted(result))}; bind sweep.Sweep.loss to one of them."
    )
  if not math.isfinite(result[loss]):
    raise Diverged(
      f"the {loss} of {point.name} is {result[loss]}; lower its learning rate."
    )


def _reason(error: Exception) -> str:
  first = (str(error) or "no message").splitlines()[0]
  if isinstance(error, (UserError, RunError)):
    return first
  return f"{type(error).__name__}: {first}"
