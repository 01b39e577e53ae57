"""What a run leaves behind, and where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import tensorflow as tf

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.ops.errors import UserError


class Workdir:
  """The files of one run below one folder, local or gs://.

  Args:
    root: the folder; made when it is first written to.
  """

  def __init__(self, root: str):
    self.root = root
    self.config = os.path.join(root, "config.gin")
    self.data = os.path.join(root, "data.json")
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

  def keep_data(self, **splits: SplitIndex) -> None:
    """Writes down what the run reads, once.

    Args:
      **splits: {split: what it holds}.

    Raises:
      UserError: if the run was begun on something else.
    """
    data = {
      split: {
        "folder": os.path.dirname(index.files[0]),
        "examples": index.num_examples,
      }
      for split, index in splits.items()
    }
    if not tf.io.gfile.exists(self.data):
      replace_file(self.data, json.dumps(data, indent=1) + "\n")
      return
    with tf.io.gfile.GFile(self.data) as file:
      before = json.load(file)
    for split in data:
      if before.get(split) != data[split]:
        raise UserError(
          f"the {split!r} data have changed since the run in {self.root!r} was"
          f" begun (then {before.get(split)}, now {data[split]}); restore them,"
          " or start anew in another --workdir."
        )

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
