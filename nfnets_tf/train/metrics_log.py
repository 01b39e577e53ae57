"""Numbers of a run: one JSON object a line, and the same for TensorBoard."""

import json

import tensorflow as tf

from nfnets_tf.train.workdir import Workdir, replace_file


class MetricsLog:
  """Appends records to metrics.jsonl and to TensorBoard's event files.

  Args:
    workdir: where the files lie.
    step: step at which the run starts or goes on; records of later steps, left
      by a run that was killed after its last checkpoint, are taken out.
  """

  def __init__(self, workdir: Workdir, *, step: int):
    self._path = workdir.metrics
    tf.io.gfile.makedirs(workdir.root)
    # The closing record is written anew if the run ended right behind it.
    kept = [
      record
      for record in read_records(self._path)
      if record["step"] <= step and "weights_sha256" not in record
    ]
    replace_file(self._path, "".join(json.dumps(r) + "\n" for r in kept))
    self._summaries = tf.summary.create_file_writer(workdir.tensorboard)

  def write(self, step: int, record: dict) -> None:
    """Adds one record; numbers also become TensorBoard scalars."""
    with tf.io.gfile.GFile(self._path, "a") as file:
      file.write(json.dumps({"step": step, **record}) + "\n")
    with self._summaries.as_default(step=step):
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
