"""Numbered version directories that become visible only when complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import refuse_pattern

_MODEL = "saved_model.pb"


def next_version(directory: str) -> str:
  """Returns the path after the largest of directory/1, directory/2, ...

  Model servers load the largest number, even if smaller ones are missing.
  """
  names = []
  if tf.io.gfile.isdir(directory):
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
  version = max((int(x) for x in names if x.isdigit()), default=0) + 1
  return os.path.join(directory, str(version))


@dataclasses.dataclass
class PendingDirectory:
  """A directory that is being written.

  Attributes:
    folder: where files are written, next to the final place.
    path: the final place once it is complete; None before.
  """

  folder: str
  path: str | None = None


@contextlib.contextmanager
def create_directory(directory: str) -> Iterator[PendingDirectory]:
  """Creates a directory that gets its name when the block ends.

  Args:
    directory: the final place, local or gs://.

  Yields:
    The directory to write to; removed if the block raises.

  Raises:
    UserError: if `directory` exists.
  """
  directory = directory.rstrip("/")
  parent, name = os.path.split(directory)
  if tf.io.gfile.exists(directory):
    raise UserError(
      f"the directory {directory!r} exists and is never overwritten; export to"
      f" another one, such as {next_version(parent)!r}."
    )
  with _temporary(parent, name) as pending:
    yield pending
    _move(pending.folder, directory)
    pending.path = directory


@contextlib.contextmanager
def create_next_version(directory: str) -> Iterator[PendingDirectory]:
  """Creates the next version of a directory; visible when the block ends.

  Processes that export at the same time get different numbers.

  Yields:
    The directory to write to; removed if the block raises.
  """
  with _temporary(directory, "next") as pending:
    yield pending
    while pending.path is None:
      path = next_version(directory)
      count = len(list_files(pending.folder))
      try:
        _move(pending.folder, path)
      except (tf.errors.AlreadyExistsError, tf.errors.FailedPreconditionError):
        # Another process took the number, unless files were moved already.
        if len(list_files(pending.folder)) < count:
          raise
      else:
        pending.path = path


@contextlib.contextmanager
def _temporary(parent: str, name: str) -> Iterator[PendingDirectory]:
  refuse_pattern("the directory", os.path.join(parent, name))
  folder = os.path.join(parent, f"partial-{uuid.uuid4().hex[:8]}-{name}")
  try:
    yield PendingDirectory(folder)
  finally:
    if tf.io.gfile.isdir(folder):
      tf.io.gfile.rmtree(folder)


def _move(source: str, directory: str) -> None:
  """Moves a complete directory to its final place."""
  if "://" not in directory:
    tf.io.gfile.rename(source, directory)
    return
  # Object stores rename files, not directories. The model card comes first in
  # every export, so the second of two concurrent exports fails before it moves
  # anything; the model comes last, since servers look for it.
  paths = list_files(source)
  model = os.path.join(source, _MODEL)
  for path in sorted(paths, key=lambda path: (path == model, path)):
    target = directory + path[len(source) :]
    tf.io.gfile.makedirs(os.path.dirname(target))
    tf.io.gfile.rename(path, target)


def list_files(folder: str) -> list[str]:
  """Returns the paths of all files below a folder."""
  return [
    os.path.join(path, name)
    for path, _, names in tf.io.gfile.walk(folder)
    for name in names
  ]
