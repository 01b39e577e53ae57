"""What a run leaves behind, and where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import tensorflow as tf

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes, report_write_errors, write_atomically


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
    self.rollbacks = os.path.join(root, "rollbacks.json")
    self.not_finite = os.path.join(root, "not_finite.tsv")
    self.result = os.path.join(root, "result.json")

  def check_writable(self) -> None:
    """Checks early that a local folder can be made or written to.

    Raises:
      UserError: if it cannot.
    """
    if "://" in self.root:
      return
    path = os.path.abspath(self.root)
    while not os.path.lexists(path):
      path = os.path.dirname(path)
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
      state = "is not writable" if os.path.isdir(path) else "is no folder"
      raise UserError(
        f"--workdir={self.root} cannot be used, since {path!r} {state}; give a"
        " folder that can be written to."
      )

  def keep_configuration(self, text: str) -> None:
    """Writes the configuration that the run is made with.

    If it is not the one that is there, that is kept as config.1.gin, or under
    the next number that is free.
    """
    with report_write_errors(self.root):
      tf.io.gfile.makedirs(self.root)
    if tf.io.gfile.exists(self.config):
      with tf.io.gfile.GFile(self.config) as file:
        if file.read() == text:
          return
      number = 1
      while tf.io.gfile.exists(older := f"{self.config[:-4]}.{number}.gin"):
        number += 1
      with report_write_errors(older):
        tf.io.gfile.copy(self.config, older)
    write_atomically(self.config, text)

  def read_parts(self) -> int | None:
    """Returns of how many parts the order of examples is, None before a run."""
    if not tf.io.gfile.exists(self.data):
      return None
    with tf.io.gfile.GFile(self.data) as file:
      return json.load(file).get("parts")

  def keep_data(self, *, parts: int, **splits: SplitIndex) -> None:
    """Writes down what the run reads, once.

    Args:
      parts: of the order of examples.
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
      content = json.dumps({**data, "parts": parts}, indent=1)
      write_atomically(self.data, content + "\n")
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
    return json.loads(read_bytes(self.result))

  def write_result(self, result: dict) -> None:
    """Marks the run as finished."""
    write_atomically(self.result, json.dumps(result, indent=1) + "\n")


def run_folder(checkpoint: str) -> str | None:
  """Returns the work directory of the run that a checkpoint is of.

  Args:
    checkpoint: the directory itself, its checkpoints folder, or one of them.

  Returns:
    A folder with a config.gin, None if there is none.
  """
  folder = os.path.normpath(os.path.expanduser(checkpoint))
  if "://" in checkpoint:
    folder = checkpoint.rstrip("/")
  for _ in range(3):
    # A SavedModel has a copy of it.
    of_run, of_export = (
      tf.io.gfile.exists(os.path.join(folder, name))
      for name in ("config.gin", "saved_model.pb")
    )
    if of_run and not of_export:
      return folder
    folder = os.path.dirname(folder) or "."
  return None


def weights_sha256(variables: Iterable[tf.Variable]) -> str:
  """Returns the SHA-256 of the variables' bytes, in their order."""
  digest = hashlib.sha256()
  for variable in variables:
    digest.update(variable.numpy().tobytes())
  return digest.hexdigest()
