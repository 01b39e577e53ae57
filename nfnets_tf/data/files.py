"""What is read of a file as it is: its hash, its JSON, its records' places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.ops.errors import UserError


def file_sha256(path: str) -> str:
  """Returns the SHA-256 of a file, in hexadecimal digits."""
  digest = hashlib.sha256()
  with tf.io.gfile.GFile(path, "rb") as file:
    while block := file.read(1 << 22):
      digest.update(block)
  return digest.hexdigest()


def read_json(path: str) -> dict:
  """Reads a JSON object, such as the index.

  Raises:
    UserError: if the file holds none.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    content = file.read()
  try:
    found = json.loads(content)
  except ValueError as error:
    raise UserError(
      f"{path!r} is no JSON file ({error}); restore it, or write the data set"
      " again."
    ) from error
  if not isinstance(found, dict):
    raise UserError(
      f"{path!r} holds {type(found).__name__}, not an object; restore it, or"
      " write the data set again."
    )
  return found


def record_spans(path: str) -> Iterator[tuple[int, int]]:
  """Yields (offset, length) of every record of a TFRecord file."""
  with tf.io.gfile.GFile(path, "rb") as stream:
    size, offset = stream.size(), 0
    while offset < size:
      stream.seek(offset)
      length = int.from_bytes(stream.read(8), "little")
      yield offset + 12, length
      offset += length + 16  # length, its sum, the record, its sum
