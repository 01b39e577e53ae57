"""Numbered folders that appear whole, as TensorFlow Serving expects them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.errors import UserError

_MODEL = "saved_model.pb"


def next_version(directory: str) -> str:
  """Returns the folder after the largest of directory/1, directory/2, ...

  Servers take the largest number, whatever is missing before it.
  """
  names = []
  if tf.io.gfile.isdir(directory):
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
  version = max((int(x) for x in names if x.isdigit()), default=0) + 1
  return os.path.join(directory, str(version))


@dataclasses.dataclass
class Partial:
  """A folder that is being filled.

  Attributes:
    folder: what is filled, beside where it will be.
    path: where it is, when it is full; None before.
  """

  folder: str
  path: str | None = None


@contextlib.contextmanager
def appearing_whole(directory: str) -> Iterator[Partial]:
  """Gives a folder to fill, which takes its name when it is full.

  Args:
    directory: to be made, local or gs://.

  Yields:
    A `Partial`; left with an error its folder is removed.

  Raises:
    UserError: if `directory` exists.
  """
  directory = directory.rstrip("/")
  parent, name = os.path.split(directory)
  if tf.io.gfile.exists(directory):
    raise UserError(
      f"the folder {directory!r} exists already and is not overwritten; export"
      f" to another, such as {next_version(parent)!r}."
    )
  with _removed_after(parent, name) as partial:
    yield partial
    _move(partial.folder, directory)
    partial.path = directory


@contextlib.contextmanager
def appearing_as_next(directory: str) -> Iterator[Partial]:
  """Gives a folder to fill, which becomes the next version in `directory`.

  Of processes that export at the same time each gets a number of its own.

  Yields:
    A `Partial`; left with an error its folder is removed.
  """
  with _removed_after(directory, "next") as partial:
    yield partial
    while partial.path is None:
      path = next_version(directory)
      files = len(files_below(partial.folder))
      try:
        _move(partial.folder, path)
      except (tf.errors.AlreadyExistsError, tf.errors.FailedPreconditionError):
        # Another process's, if it was there before anything was moved.
        if len(files_below(partial.folder)) < files:
          raise
      else:
        partial.path = path


@contextlib.contextmanager
def _removed_after(parent: str, name: str) -> Iterator[Partial]:
  folder = os.path.join(parent, f"partial-{uuid.uuid4().hex[:8]}-{name}")
  try:
    yield Partial(folder)
  finally:
    if tf.io.gfile.isdir(folder):
      tf.io.gfile.rmtree(folder)


def _move(partial: str, directory: str) -> None:
  """Gives a folder its name, so that no server takes a part for the whole."""
  if "://" not in directory:
    tf.io.gfile.rename(partial, directory)
    return
  # Elsewhere folders are not moved at once, if at all; files are. The card is
  # the first of all exports, so that of two the second moves nothing, and the
  # model the last: a server looks for it.
  paths = files_below(partial)
  model = os.path.join(partial, _MODEL)
  for path in sorted(paths, key=lambda path: (path == model, path)):
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
