"""Logs of a run: metrics.jsonl, TensorBoard, progress and curves.png."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

import matplotlib
import tensorflow as tf
from matplotlib.figure import Figure
from tqdm import tqdm

from nfnets_tf import figures
from nfnets_tf.fileio import report_write_errors, write_atomically
from nfnets_tf.progress import Activity, Bar, activity

if TYPE_CHECKING:
  from nfnets_tf.train.run_dir import RunDir

LOGGER = logging.getLogger("nfnets_tf")

_BAR = (
  "{desc}{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix},"
  " {remaining} left"
)
# {prefix of a metric: (label, color, line width, marker)}.
_CURVES = {
  "": ("training, as optimized", "0.55", 1.0, None),
  "heldout_": ("held out, raw weights", "C0", 1.5, "o"),
  "ema_heldout_": ("held out, averaged weights", "C1", 1.5, "o"),
}


class MetricsLog:
  """Appends records to metrics.jsonl and to TensorBoard's event files.

  Args:
    files: of the run.
    step: at which the run starts or resumes; records of later steps, left by a
      process that was killed after its last checkpoint, are removed.
    end: the run's last step, whose final record is written again.
    writes: whether this process writes; all methods do nothing otherwise.
  """

  def __init__(
    self, files: RunDir, *, step: int, end: int, writes: bool = True
  ):
    self._path, self._end, self._writes = files.metrics, end, writes
    self._tensorboard, self._summaries = files.tensorboard, None
    if writes:
      tf.io.gfile.makedirs(files.root)
      self.drop_later(step)

  def drop_later(self, step: int) -> None:
    """Removes the records of later steps, and the final one, from both logs."""
    if not self._writes:
      return
    records = read_records(self._path)
    kept = [
      record
      for record in records
      if record["step"] <= step
      and not (record["step"] == self._end and "weights_sha256" in record)
    ]
    write_atomically(self._path, "".join(json.dumps(r) + "\n" for r in kept))
    if self._summaries is not None:
      self._summaries.close()
    with report_write_errors(self._tensorboard):
      _drop_events(self._tensorboard, _points_of(records) - _points_of(kept))
    self._summaries = tf.summary.create_file_writer(self._tensorboard)

  def write(self, step: int, record: dict) -> None:
    """Appends one record; its numbers also become TensorBoard scalars."""
    if not self._writes:
      return
    with report_write_errors(self._path):
      with tf.io.gfile.GFile(self._path, "a") as file:
        file.write(json.dumps({"step": step, **record}) + "\n")
    with (
      report_write_errors(self._tensorboard),
      self._summaries.as_default(step=step),
    ):
      for name, value in record.items():
        if isinstance(value, (int, float)):
          tf.summary.scalar(name, value)
      self._summaries.flush()


def _points_of(records: list[dict]) -> set[tuple[int, str]]:
  """Returns the (step, name) of all values."""
  return {(record["step"], name) for record in records for name in record}


def _drop_events(directory: str, points: set[tuple[int, str]]) -> None:
  """Removes points, (step, name), from TensorBoard's event files.

  TensorBoard has a record for it, of a session that starts at an earlier step,
  but other readers show all that is in the files.
  """
  if not points or not tf.io.gfile.isdir(directory):
    return
  for name in tf.io.gfile.listdir(directory):
    path = os.path.join(directory, name)
    if "tfevents" not in name or tf.io.gfile.isdir(path):
      continue
    events = list(_read_events(path))
    kept = [
      event
      for event in events
      if not any((event.step, x.tag) in points for x in event.summary.value)
    ]
    if len(kept) < len(events):
      # TensorBoard takes every file with "tfevents" in its name for one.
      partial = os.path.join(directory, "partial")
      with tf.io.TFRecordWriter(partial) as writer:
        for event in kept:
          writer.write(event.SerializeToString())
      tf.io.gfile.rename(partial, path, overwrite=True)


def _read_events(path: str) -> Iterator[tf.compat.v1.Event]:
  try:
    for event in tf.data.TFRecordDataset(path).as_numpy_iterator():
      yield tf.compat.v1.Event.FromString(event)
  except tf.errors.DataLossError:
    pass  # the process was killed while it wrote this one


def read_records(path: str) -> list[dict]:
  """Returns the records of a metrics.jsonl, [] if there is no such file."""
  if not tf.io.gfile.exists(path):
    return []
  with tf.io.gfile.GFile(path) as file:
    lines = file.read().split("\n")
  # A line without its line break was being written when the run was killed.
  return [json.loads(line) for line in lines[:-1]]


class Progress:
  """Shows step, loss, images per second and time left.

  Args:
    total_steps: of the run.
    step: at which this process starts.
    batch_size: images per step.
    stream: the terminal for a progress bar; None writes log lines.
    clock: returns seconds.
    line_seconds: minimum time between two log lines, the last one excepted.
    silent: shows nothing and only measures the speed.
  """

  def __init__(
    self,
    *,
    total_steps: int,
    step: int,
    batch_size: int,
    stream: TextIO | None,
    clock: Callable[[], float] = time.monotonic,
    line_seconds: float = 5.0,
    silent: bool = False,
  ):
    self._total, self._step, self._batch_size = total_steps, step, batch_size
    self._clock, self._time = clock, clock()
    self._line_seconds, self._last_line = line_seconds, -float("inf")
    self._silent, self._compiled, self._bar = silent, False, None
    self._activity: Activity | None = None
    if stream is not None:
      self._bar = Bar(
        total=total_steps,
        initial=step,
        file=stream,
        unit="step",
        bar_format=_BAR,
      )

  @contextlib.contextmanager
  def shown(self) -> Iterator[None]:
    """Shows long steps, such as the first one, for the duration of a `with`."""
    with activity("Compiling the training step") as self._activity:
      yield

  def resume_clock(self) -> None:
    """Excludes the time since the last update, which was not training."""
    self._time = self._clock()

  def go_back(self, step: int) -> None:
    """Restarts from an earlier step."""
    self._step = step
    self.resume_clock()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.refresh()

  def update(self, step: int, loss: float) -> float:
    """Shows the end of an interval; returns its images per second."""
    now = self._clock()
    steps_per_second = (step - self._step) / max(now - self._time, 1e-9)
    images_per_second = steps_per_second * self._batch_size
    self._step, self._time = step, now
    speed = f"{images_per_second:,.0f} images/s"
    if self._bar is not None:
      self._bar.set_postfix_str(f"loss {loss:.4f}, {speed}", refresh=False)
      self._bar.update(step - self._bar.n)
    elif not self._silent and (
      now - self._last_line >= self._line_seconds or step == self._total
    ):
      self._last_line = now
      line = f"step {step:,}/{self._total:,}, loss {loss:.4f}"
      if self._compiled:
        seconds_left = (self._total - step) / max(steps_per_second, 1e-9)
        line += f", {speed}, {tqdm.format_interval(seconds_left)} left"
      LOGGER.info(line)
    self._compiled = True  # the first interval's time includes compilation
    if self._activity is not None:
      self._activity.text = f"Training from step {step:,}"
      self._activity.restart()
    return images_per_second

  def note(self, line: str) -> None:
    """Shows a line above the bar."""
    if self._bar is not None:
      self._bar.write(line, file=self._bar.fp)
    elif not self._silent:
      LOGGER.info(line)

  def close(self) -> None:
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()


def draw_curves(files: RunDir, *, title: str) -> None:
  """Draws the records' loss, accuracy and learning rate against the step."""
  records = read_records(files.metrics)
  with matplotlib.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
  figure.suptitle(figures.label(title))
  for prefix, (label, color, width, marker) in _CURVES.items():
    style = {"linewidth": width, "marker": marker, "markersize": 3}
    for axes, name, scale in ((loss, "loss", 1.0), (accuracy, "top1", 100.0)):
      points = _points(records, f"{prefix}{name}", scale)
      axes.plot(*points, label=label, color=color, **style)
  rate.plot(*_points(records, "learning_rate"), color="C2", linewidth=1.5)
  loss.set(ylabel="cross-entropy (nats)", yscale="log")
  loss.legend(fontsize="small")
  accuracy.set(ylabel="top-1 (%)", ylim=(None, 100.5))
  rate.set(ylabel="learning rate")
  for axes in (loss, accuracy, rate):
    axes.set_xlabel("step")
  figures.save_png(figure, files.curves, dpi=120, formulas=True)


def _points(records, name: str, scale: float = 1.0) -> tuple[list, list]:
  with_name = [record for record in records if name in record]
  return (
    [record["step"] for record in with_name],
    [scale * record[name] for record in with_name],
  )
