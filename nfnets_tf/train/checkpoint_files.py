"""The files of checkpoints: seen whole or not at all, and never lost.

A checkpoint `ckpt-STEP` is a pair of files, `.data-00000-of-00001` and
`.index`. Both are written in a folder of their own and moved; a checkpoint is
there when its index is. TensorFlow's own list, the file `checkpoint`, is kept
for other tools and never read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

import tensorflow as tf

from nfnets_tf.fileio import write_atomically

_INDEX = re.compile(r"ckpt-(\d+)\.index")
# In this order: what was moved before the index is not seen.
_PARTS = (".data-00000-of-00001", ".index")


def path_of(directory: str, step: int) -> str:
  """Returns the path of a checkpoint, without the endings of its files."""
  return os.path.join(directory, f"ckpt-{step}")


def steps_in(directory: str) -> list[int]:
  """Returns the steps of the checkpoints in a folder, the newest last."""
  if not tf.io.gfile.isdir(directory):
    return []
  found = map(_INDEX.fullmatch, tf.io.gfile.listdir(directory))
  return sorted(int(match[1]) for match in found if match)


def newest_in(directory: str) -> str | None:
  """Returns the path of the newest checkpoint in a folder, None if of none."""
  steps = steps_in(directory)
  return path_of(directory, steps[-1]) if steps else None


def write(checkpoint: tf.train.Checkpoint, directory: str, step: int) -> None:
  """Writes a checkpoint, in the place of one of the same step.

  Raises:
    OSError, tf.errors.OpError: if it could not be written; then there is no
      part of it.
  """
  partial = os.path.join(directory, "partial")
  if not tf.io.gfile.isdir(partial):
    tf.io.gfile.mkdir(partial)
  try:
    written = checkpoint.write(path_of(partial, step))
    final = path_of(directory, step)
    if tf.io.gfile.exists(final + _PARTS[1]):
      tf.io.gfile.remove(final + _PARTS[1])  # no index of other data
    for part in _PARTS:
      tf.io.gfile.rename(written + part, final + part, overwrite=True)
  finally:
    if tf.io.gfile.isdir(partial):
      tf.io.gfile.rmtree(partial)


def remove(directory: str, steps: Iterable[int]) -> None:
  """Removes checkpoints, each index first."""
  for step in steps:
    for part in reversed(_PARTS):
      path = path_of(directory, step) + part
      if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def set_aside(directory: str, steps: Iterable[int]) -> None:
  """Renames the files of damaged checkpoints, each index first."""
  for step in steps:
    for part in reversed(_PARTS):
      path = path_of(directory, step) + part
      if tf.io.gfile.exists(path):
        tf.io.gfile.rename(path, f"{path}.damaged", overwrite=True)


def rotate(directory: str, *, keep: int) -> None:
  """Removes all but the newest `keep` checkpoints and the best one."""
  best = read_best(directory)
  steps = steps_in(directory)
  kept = {*steps[-keep:], best and best["step"]}
  remove(directory, [step for step in steps if step not in kept])
  left = [path_of(directory, step) for step in steps if step in kept]
  if left:  # else the folder has vanished, which the next one will meet
    tf.compat.v1.train.update_checkpoint_state(
      directory, left[-1], all_model_checkpoint_paths=left
    )


def read_best(directory: str) -> dict | None:
  """Returns {"step", "loss"} of the best evaluation, None before one."""
  path = _best_path(directory)
  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    return json.load(file)


def write_best(directory: str, best: dict | None) -> None:
  """Writes down whose checkpoint `rotate` keeps, as `read_best` returns it."""
  write_atomically(_best_path(directory), json.dumps(best))


def _best_path(directory: str) -> str:
  return os.path.join(directory, "best.json")
