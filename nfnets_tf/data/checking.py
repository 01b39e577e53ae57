"""Shards read back: what is wrong with them, record by record."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import threading

import tensorflow as tf

from nfnets_tf.data.faults import Examiner, Fault, plain_message
from nfnets_tf.data.preprocess import decode

CUT = "shard cut off or corrupt"
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
  """

  path: str
  records: int = 0
  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  named: list[tuple[int, Fault]] = dataclasses.field(default_factory=list)

  def add(self, fault: Fault) -> None:
    """Counts a fault of the record that was read last, or of what follows."""
    self.counts[fault.cause] += 1
    if len(self.named) < _NAMED:
      position = self.records if fault.cause == CUT else self.records - 1
      self.named.append((position, fault))


class Checker:
  """Checks shards; may be called from several threads.

  Args:
    examine: says what is wrong with a record.
    min_side: images with a shorter side are tiny, in pixels.
  """

  def __init__(self, examine: Examiner, *, min_side: int):
    self._examine, self._min_side = examine, min_side
    self._seen: dict[bytes, str] = {}
    self._lock = threading.Lock()

  def __call__(self, path: str, expected: int | None = None) -> ShardFindings:
    """Reads a shard.

    Args:
      path: of the shard.
      expected: number of its records, if that is known.

    Returns:
      What it holds; a shard that ends early or with another number of records
      has the fault `CUT`.
    """
    found = ShardFindings(path)
    try:
      for serialized in tf.data.TFRecordDataset(path).as_numpy_iterator():
        found.records += 1
        for fault in self._faults(serialized, f"{path}@{found.records - 1}"):
          found.add(fault)
    except tf.errors.OpError as error:
      found.add(Fault(CUT, detail=plain_message(error)))
      return found
    if expected is not None and found.records != expected:
      detail = f"{found.records} records, {expected} expected"
      found.add(Fault(CUT, detail=detail))
    return found

  def _faults(self, serialized: bytes, place: str):
    fault = self._examine(serialized)
    if fault is not None:
      yield fault
      return
    features = tf.train.Example.FromString(serialized).features.feature
    fields = self._examine.fields
    encoded = features[fields.image].bytes_list.value[0]
    name = b"".join(features[fields.name].bytes_list.value).decode(
      errors="replace"
    )
    with self._lock:
      key = hashlib.sha256(encoded).digest()[:16]
      first = self._seen.setdefault(key, place)
    if first != place:
      yield Fault(DUPLICATE, name, f"of {first}")
    height, width = self._size(features, encoded)
    if min(height, width) < self._min_side:
      yield Fault(TINY, name, f"{height} x {width} pixels")

  def _size(self, features, encoded: bytes) -> tuple[int, int]:
    fields = self._examine.fields
    if fields.raw:
      sides = (features[key] for key in (fields.height, fields.width))
      return tuple(side.int64_list.value[0] for side in sides)
    return tuple(decode(tf.constant(encoded)).shape[:2])
