"""Numbers of a run: one JSON object a line, and the same for TensorBoard."""

import json

import tensorflow as tf

from nfnets_tf.fileio import report_write_errors, write_atomically
from nfnets_tf.train.run_dir import RunDir


class MetricsLog:
  """Appends records to metrics.jsonl and to TensorBoard's event files.

  Args:
    workdir: where the files lie.
    step: step at which the run starts or goes on; records of later steps, left
      by a run that was killed after its last checkpoint, are taken out.
    end: the run's last step, whose closing record is written anew.
    writes: whether this process writes; otherwise nothing happens.
  """

  def __init__(
    self, workdir: RunDir, *, step: int, end: int, writes: bool = True
  ):
    self._path, self._end, self._writes = workdir.metrics, end, writes
    self._folder = workdir.tensorboard
    if writes:
      tf.io.gfile.makedirs(workdir.root)
      self.drop_later(step)
      self._summaries = tf.summary.create_file_writer(workdir.tensorboard)

  def drop_later(self, step: int) -> None:
    """Takes out records of later steps, and the closing one."""
    if not self._writes:
      return
    kept = [
      record
      for record in read_records(self._path)
      if record["step"] <= step
      and not (record["step"] == self._end and "weights_sha256" in record)
    ]
    write_atomically(self._path, "".join(json.dumps(r) + "\n" for r in kept))

  def write(self, step: int, record: dict) -> None:
    """Adds one record; numbers also become TensorBoard scalars."""
    if not self._writes:
      return
    with report_write_errors(self._path):
      with tf.io.gfile.GFile(self._path, "a") as file:
        file.write(json.dumps({"step": step, **record}) + "\n")
    with (
      report_write_errors(self._folder),
      self._summaries.as_default(step=step),
    ):
      for name, value in record.items():
        if isinstance(value, (int, float)):
          tf.summary.scalar(name, value)
      self._summaries.flush()


def read_records(path: str) -> list[dict]:
  """Returns the records of a metrics.jsonl; a torn last line is left out."""
  if not tf.io.gfile.exists(path):
    return []
  with tf.io.gfile.GFile(path) as file:
    lines = file.read().split("\n")
  # What follows the last line break was being written when the run ended.
  return [json.loads(line) for line in lines[:-1]]
