"""Numbered folders that appear whole, as TensorFlow Serving expects them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.ops.errors import UserError

_MODEL = "saved_model.pb"


def next_version(directory: str) -> str:
  """Returns the first of directory/1, directory/2, ... that is free."""
  version = 1
  while tf.io.gfile.exists(os.path.join(directory, str(version))):
    version += 1
  return os.path.join(directory, str(version))


@contextlib.contextmanager
def appearing_whole(directory: str) -> Iterator[str]:
  """Gives a folder to fill, which takes its name when it is full.

  Args:
    directory: to be made, local or gs://.

  Yields:
    Path of a folder beside it; left with an error it is removed.

  Raises:
    UserError: if `directory` exists.
  """
  parent, name = os.path.split(directory)
  if tf.io.gfile.exists(directory):
    raise UserError(
      f"the folder {directory!r} exists already and is not overwritten; export"
      f" to another, such as {next_version(parent)!r}."
    )
  partial = os.path.join(parent, f"partial-{uuid.uuid4().hex[:8]}-{name}")
  try:
    yield partial
    _move(partial, directory)
  finally:
    if tf.io.gfile.isdir(partial):
      tf.io.gfile.rmtree(partial)


def _move(partial: str, directory: str) -> None:
  """Gives a folder its name, so that no server takes a part for the whole."""
  if "://" not in directory:
    tf.io.gfile.rename(partial, directory)
    return
  # Elsewhere folders are not moved at once, if at all; files are.
  paths = files_below(partial)
  model = os.path.join(partial, _MODEL)
  for path in sorted(paths, key=lambda path: path == model):
    target = directory + path[len(partial) :]
    tf.io.gfile.makedirs(os.path.dirname(target))
    tf.io.gfile.rename(path, target)


def files_below(folder: str) -> list[str]:
  """Returns the paths of all files below a folder."""
  return [
    os.path.join(path, name)
    for path, _, names in tf.io.gfile.walk(folder)
    for name in names
  ]
