"""What a run leaves behind, and where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import tensorflow as tf


class Workdir:
  """The files of one run below one folder, local or gs://.

  Args:
    root: the folder; made when it is first written to.
  """

  def __init__(self, root: str):
    self.root = root
    self.config = os.path.join(root, "config.gin")
    self.metrics = os.path.join(root, "metrics.jsonl")
    self.curves = os.path.join(root, "curves.png")
    self.checkpoints = os.path.join(root, "checkpoints")
    self.saved_models = os.path.join(root, "saved_model")
    self.tensorboard = os.path.join(root, "tensorboard")
    self.sample = os.path.join(root, "heldout_sample.npy")
    self.report = os.path.join(root, "report")
    self.result = os.path.join(root, "result.json")

  def keep_configuration(self, text: str) -> None:
    """Writes the configuration that the run is made with, once."""
    tf.io.gfile.makedirs(self.root)
    if not tf.io.gfile.exists(self.config):
      replace_file(self.config, text)

  def read_result(self) -> dict | None:
    """Returns the result of a finished run, None of any other."""
    if not tf.io.gfile.exists(self.result):
      return None
    with tf.io.gfile.GFile(self.result) as file:
      return json.load(file)

  def write_result(self, result: dict) -> None:
    """Marks the run as finished."""
    replace_file(self.result, json.dumps(result, indent=1) + "\n")


def replace_file(path: str, content: str) -> None:
  """Writes a text file so that it is seen whole or not at all."""
  partial = f"{path}.partial"
  with tf.io.gfile.GFile(partial, "w") as file:
    file.write(content)
  tf.io.gfile.rename(partial, path, overwrite=True)


def weights_sha256(variables: Iterable[tf.Variable]) -> str:
  """Returns the SHA-256 of the variables' bytes, in their order."""
  digest = hashlib.sha256()
  for variable in variables:
    digest.update(variable.numpy().tobytes())
  return digest.hexdigest()
