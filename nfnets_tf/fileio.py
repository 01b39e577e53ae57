"""Files: atomic writes, JSON, hashes, and write errors as one sentence."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.errors import (
  RunError,
  UserError,
  is_host_lost,
  plain_message,
)

_BLOCK = 1 << 22
_RUN_LAYOUT = 2  # of the files in a work directory, "format" in its data.json
# A checkpoint exists when its index does: it is moved there last.
_CHECKPOINT = re.compile(r"ckpt-(\d+)\.index")


def file_sha256(path: str) -> str:
  """Returns the SHA-256 of a file, in hexadecimal digits."""
  digest = hashlib.sha256()
  with tf.io.gfile.GFile(path, "rb") as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()


def read_json(path: str) -> dict:
  """Reads a JSON object.

  Raises:
    UserError: if the file does not hold a JSON object.
  """
  try:
    content = json.loads(read_bytes(path))
  except ValueError as error:
    raise UserError(
      f"{path!r} is not a JSON file ({error}); restore it, or write the dataset"
      " again."
    ) from error
  if not isinstance(content, dict):
    raise UserError(
      f"{path!r} holds {type(content).__name__}, not an object; restore it, or"
      " write the dataset again."
    )
  return content


@contextlib.contextmanager
def report_write_errors(path: str) -> Iterator[None]:
  """Turns errors of writing a file into one sentence.

  Raises:
    RunError: of an error of the file system.
  """
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    if is_host_lost(error):
      raise  # not the file's fault: a slice's first host writes it
    raise RunError(
      f"{path!r} cannot be written ({plain_message(error)}); make room or"
      " restore it, and rerun the same command to resume from the last"
      " checkpoint."
    ) from error


def write_atomically(path: str, content: str | bytes) -> None:
  """Writes a file so that readers see it complete or not at all.

  Several processes may write the same file; the last one's is what stays.
  """
  partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
  with report_write_errors(path):
    try:
      mode = "wb" if isinstance(content, bytes) else "w"
      with tf.io.gfile.GFile(partial, mode) as file:
        file.write(content)
      tf.io.gfile.rename(partial, path, overwrite=True)
    except BaseException:
      with contextlib.suppress(tf.errors.OpError):
        tf.io.gfile.remove(partial)
      raise


@contextlib.contextmanager
def new_file(path: str) -> Iterator[tf.io.gfile.GFile]:
  """Opens a binary file that must not exist; it appears when it is complete.

  Raises:
    UserError: if the file exists.
  """
  if tf.io.gfile.exists(path):
    raise UserError(
      f"the file {path!r} exists and is not overwritten; choose another name."
    )
  partial = f"{path}.partial"
  try:
    with tf.io.gfile.GFile(partial, "wb") as file:
      yield file
    tf.io.gfile.rename(partial, path)
  except BaseException:
    with contextlib.suppress(tf.errors.OpError):
      tf.io.gfile.remove(partial)
    raise


def read_bytes(path: str) -> bytes:
  """Reads a file to its end, also while another process replaces it."""
  # GFile.read() without a size would query the path, not the open file, for it.
  with tf.io.gfile.GFile(path, "rb") as file:
    return b"".join(iter(lambda: file.read(_BLOCK), b""))


def decode_text(content: bytes) -> str:
  """Returns text that is in UTF-8, or in UTF-16 with its mark.

  Raises:
    UnicodeDecodeError: if it is in neither.
  """
  if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return content.decode("utf-16")
  return content.decode("utf-8-sig")


def refuse_pattern(name: str, path: str) -> None:
  """Raises a UserError about a path that TensorFlow's readers cannot open.

  They take the path of a checkpoint or SavedModel for a pattern, in which "["
  begins a set of characters, and a backslash is dropped: such a path does not
  match itself. Nothing can be escaped, because they open it as it is later.

  Args:
    name: of what has the path, for the message.
    path: of a directory or checkpoint.
  """
  for character in "[\\":
    if character in path:
      raise UserError(
        f"{name} {path!r} contains {character!r}, but TensorFlow takes paths of"
        " checkpoints and SavedModels for patterns and cannot read them there;"
        " use or rename it to a path without '[' and backslashes."
      )


def find_run_dir(path: str) -> str | None:
  """Returns the work directory that a checkpoint belongs to.

  Args:
    path: a work directory, its checkpoints directory, or one checkpoint.

  Returns:
    The nearest directory with a config.gin, None if there is none.
  """
  if path.startswith(("http://", "https://")):
    return None  # of weights, which are downloaded
  folder = os.path.normpath(os.path.expanduser(path))
  if "://" in path:
    folder = path.rstrip("/")
  for _ in range(3):
    # A SavedModel holds a copy of config.gin.
    is_run, is_export = (
      tf.io.gfile.exists(os.path.join(folder, name))
      for name in ("config.gin", "saved_model.pb")
    )
    if is_run and not is_export:
      return folder
    folder = os.path.dirname(folder) or "."
  return None


def read_run_data(root: str) -> dict:
  """Reads data.json of a work directory; {} before a run begins there.

  Raises:
    UserError: if another release of this package began the run.
  """
  path = os.path.join(root, "data.json")
  if not tf.io.gfile.exists(path):
    return {}
  data = read_json(path)
  if data.get("format") != _RUN_LAYOUT:
    raise UserError(
      f"the run in {root!r} has layout {data.get('format', 1)} of another"
      f" release, expected layout {_RUN_LAYOUT}; start a new run in another"
      " --workdir, or resume this one with that release."
    )
  return data


def write_run_data(root: str, data: dict) -> None:
  """Writes data.json of a work directory."""
  data = {"format": _RUN_LAYOUT, **data}
  path = os.path.join(root, "data.json")
  write_atomically(path, json.dumps(data, indent=1) + "\n")


def checkpoint_path(directory: str, step: int) -> str:
  """Returns the path of a checkpoint, without the suffixes of its files."""
  return os.path.join(directory, f"ckpt-{step}")


def checkpoint_steps(directory: str) -> list[int]:
  """Returns the steps of the checkpoints in a directory, ascending."""
  if not tf.io.gfile.isdir(directory):
    return []
  matches = map(_CHECKPOINT.fullmatch, tf.io.gfile.listdir(directory))
  return sorted(int(match[1]) for match in matches if match)


def latest_checkpoint(directory: str) -> str | None:
  """Returns the path of the latest checkpoint in a directory, or None.

  Unlike `tf.train.latest_checkpoint`, it reads the directory, not TensorFlow's
  file `checkpoint`, which may be lost, damaged or older than the checkpoints.
  """
  steps = checkpoint_steps(directory)
  return checkpoint_path(directory, steps[-1]) if steps else None
