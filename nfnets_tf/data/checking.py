"""Shards read back: what is wrong with them, record by record."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os

import tensorflow as tf

from nfnets_tf.data.preprocessing import decode
from nfnets_tf.data.validation import InvalidRecord, RecordValidator
from nfnets_tf.errors import plain_message
from nfnets_tf.fileio import file_sha256

CUT = "shard cut off or corrupt"
CHANGED = "shard changed since it was written"
# Faults of a whole shard.
OF_SHARDS = (CUT, CHANGED)
DUPLICATE = "duplicate image"
TINY = "tiny image"
# Faults that are told, though the record can be trained on.
HARMLESS = (DUPLICATE, TINY)
_NAMED = 20


@dataclasses.dataclass
class ShardFindings:
  """What a shard holds.

  Attributes:
    path: of the shard.
    records: that could be read.
    counts: {cause: number of records}.
    named: (position in the shard, fault) of some of them.
    images: (position, its hash, file name) of every image that can be used.
  """

  path: str
  records: int = 0
  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  named: list[tuple[int, InvalidRecord]] = dataclasses.field(
    default_factory=list
  )
  images: list[tuple[int, bytes, str]] = dataclasses.field(default_factory=list)

  def add(self, fault: InvalidRecord, position: int) -> None:
    """Counts a fault of the record at a position."""
    self.counts[fault.cause] += 1
    if len(self.named) < _NAMED:
      self.named.append((position, fault))


def mark_duplicates(found: ShardFindings, seen: dict[bytes, str]) -> None:
  """Adds the faults of images that have been seen before.

  Args:
    found: of a shard; its images are taken out.
    seen: {hash: where it was first}, of all shards before; is added to.
  """
  for position, key, name in found.images:
    place = f"{os.path.basename(found.path)}@{position}"
    if (first := seen.setdefault(key, place)) != place:
      found.add(InvalidRecord(DUPLICATE, name, f"of {first}"), position)
  found.images.clear()


class Checker:
  """Checks shards; may be called from several threads.

  Args:
    examine: says what is wrong with a record.
    min_side: images with a shorter side are tiny, in pixels.
  """

  def __init__(self, examine: RecordValidator, *, min_side: int):
    self._examine, self._min_side = examine, min_side

  def __call__(
    self, path: str, expected: int | None = None, sha256: str | None = None
  ) -> ShardFindings:
    """Reads a shard.

    Args:
      path: of the shard.
      expected: number of its records, if that is known.
      sha256: of the file, if that is known.

    Returns:
      What it holds; a shard that ends early or with another number of records
      has the fault `CUT`, one of other bytes `CHANGED`. Duplicates are told by
      `mark_duplicates`.
    """
    found = ShardFindings(path)
    if not tf.io.gfile.exists(path):
      found.add(InvalidRecord(CUT, detail="there is no such file"), 0)
      return found
    try:
      for serialized in tf.data.TFRecordDataset(path).as_numpy_iterator():
        self._judge(serialized, found)
        found.records += 1
    except tf.errors.OpError as error:
      found.add(InvalidRecord(CUT, detail=plain_message(error)), found.records)
      return found
    if expected is not None and found.records != expected:
      detail = f"{found.records} records, {expected} expected"
      found.add(InvalidRecord(CUT, detail=detail), found.records)
    elif sha256 is not None and file_sha256(path) != sha256:
      detail = "its SHA-256 is not that of index.json"
      found.add(InvalidRecord(CHANGED, detail=detail), 0)
    return found

  def _judge(self, serialized: bytes, found: ShardFindings) -> None:
    """Adds the faults of the next record, or its image."""
    position = found.records
    fault = self._examine(serialized)
    if fault is not None:
      found.add(fault, position)
      return
    features = tf.train.Example.FromString(serialized).features.feature
    fields = self._examine.fields
    encoded = features[fields.image].bytes_list.value[0]
    name = b"".join(features[fields.name].bytes_list.value).decode(
      errors="replace"
    )
    key = hashlib.sha256(encoded).digest()[:16]
    found.images.append((position, key, name))
    height, width = self._size(features, encoded)
    if min(height, width) < self._min_side:
      found.add(
        InvalidRecord(TINY, name, f"{height} x {width} pixels"), position
      )

  def _size(self, features, encoded: bytes) -> tuple[int, int]:
    fields = self._examine.fields
    if fields.raw:
      sides = (features[key] for key in (fields.height, fields.width))
      return tuple(side.int64_list.value[0] for side in sides)
    return tuple(decode(tf.constant(encoded)).shape[:2])
