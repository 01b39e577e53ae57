"""Validation of records: reasons and counts of invalid ones."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data.decoding import MAX_PIXELS, decode, pixel_count
from nfnets_tf.data.loading import current_host
from nfnets_tf.data.tfrecords import (
  UNREADABLE,
  FeatureValues,
  Fields,
  parse_image_and_label,
  read_features,
)
from nfnets_tf.errors import plain_message

LOGGER = logging.getLogger("nfnets_tf")

# Fills the last batch of an evaluation; not counted as an invalid record.
PADDING = b"no record"

_MAX_LOGGED = 5
_MAX_PENDING = 1024  # invalid records kept in memory between two counts
_NOT_EXAMINED = "not examined"


@dataclasses.dataclass(frozen=True)
class InvalidRecord:
  """The reason why a record is invalid.

  Attributes:
    cause: a few words, the same for all records of a kind.
    name: file name of the image, "" if unknown.
    detail: specifics of this record, "" if there are none.
  """

  cause: str
  name: str = ""
  detail: str = ""

  def __str__(self):
    return f"{self.cause} ({self.detail})" if self.detail else self.cause


class RecordValidator:
  """Determines why a record is invalid; the slow twin of the input pipeline.

  Args:
    fields: feature names of the examples.
    num_classes: labels must be below; None allows any.
    max_pixels: largest height * width that is decoded.
  """

  def __init__(
    self,
    fields: Fields,
    num_classes: int | None,
    max_pixels: int = MAX_PIXELS,
  ):
    self.fields = fields
    self.num_classes = num_classes
    self.max_pixels = max_pixels

  def __call__(self, serialized: bytes) -> InvalidRecord | None:
    """Returns why a serialized example is invalid, None if it is valid."""
    if serialized.startswith(UNREADABLE):
      shard = serialized[len(UNREADABLE) :].decode(errors="replace")
      return InvalidRecord("unreadable in its shard", detail=shard)
    try:
      values = read_features(serialized, self.fields)
    except ValueError as error:
      return InvalidRecord(str(error))
    # In this process: an error on a host of a slice would also reach what other
    # threads run there, such as the writing of a checkpoint.
    with tf.device(None):
      invalid = (
        self._check_label(values)
        or self._check_image(values)
        or self._check_parser(serialized)
      )
    return invalid and dataclasses.replace(invalid, name=values.filename)

  def _check_label(self, values: FeatureValues) -> InvalidRecord | None:
    if len(values.labels) != 1:
      return InvalidRecord("not exactly one label")
    label, classes = values.labels[0], self.num_classes
    if label < 0 or (classes is not None and label >= classes):
      detail = f"class {label} of {classes}"
      return InvalidRecord("label out of range", detail=detail)
    return None

  def _check_image(self, values: FeatureValues) -> InvalidRecord | None:
    if len(values.images) != 1:
      return InvalidRecord("not exactly one image")
    if self.fields.raw:
      return self._check_raw_image(values)
    image = tf.constant(values.images[0])
    try:
      pixels = int(pixel_count(image))
      if pixels > self.max_pixels:
        return InvalidRecord("image too large", detail=f"{pixels:,} pixels")
      height, width, _ = decode(image).shape
    except tf.errors.OpError as error:
      detail = plain_message(error)
      return InvalidRecord("image not decodable", detail=detail)
    if not height * width:
      detail = f"{height} x {width} pixels"
      return InvalidRecord("image not decodable", detail=detail)
    return None

  def _check_raw_image(self, values: FeatureValues) -> InvalidRecord | None:
    if len(values.heights) != 1 or len(values.widths) != 1:
      return InvalidRecord("no height and width")
    height, width = values.heights[0], values.widths[0]
    size = len(values.images[0])
    if height < 1 or width < 1 or height * width * 3 != size:
      detail = f"{size} bytes for {height} x {width} x 3"
      return InvalidRecord("image not decodable", detail=detail)
    return None

  def _check_parser(self, serialized: bytes) -> InvalidRecord | None:
    # TensorFlow's parser rejects some damage that protobuf's accepts.
    try:
      parse_image_and_label(tf.constant(serialized), self.fields)
    except tf.errors.OpError as error:
      detail = plain_message(error)
      return InvalidRecord("not a tf.train.Example", detail=detail)
    return None


class InvalidRecords:
  """Counts the invalid records of a split by cause, and logs the first five.

  The pipeline only sets them aside, in TensorFlow variables and tables of the
  host that reads them; Python examines them in `collect`. A Python callback
  inside tf.data could deadlock: the thread that destroys the iterator holds the
  GIL and waits for tf.data's threads, which would wait for the GIL.

  Args:
    split: name of the split, for the log.
    validate: finds out why a record is invalid.
    records_per_image: number of records per image, 1 or 2.
  """

  def __init__(
    self, split: str, validate: RecordValidator, records_per_image: int = 1
  ):
    self.validate = validate
    self._split, self._records_per_image = split, records_per_image
    self._counts = collections.Counter()
    self._examined = 0
    self._hosts: dict[str, _RecordsOfHost] = {}
    self._known = set()  # of evaluations: the positions examined so far

  def recorder(self, *, repeated: bool = False) -> Callable[..., tf.Operation]:
    """Returns a function that sets records aside, for use inside tf.data.

    To be called in the scope of the host's device, as the dataset is made.

    Args:
      repeated: whether the same positions are read again, as in every
        evaluation; each position is then counted once.

    Returns:
      A function of positions, int64 [n], and serialized records, string [n] or
      [n, records_per_image].
    """
    host = current_host()
    if host not in self._hosts:
      self._hosts[host] = _RecordsOfHost(
        host, self._records_per_image, repeated=repeated
      )
    return self._hosts[host].set_aside

  def collect(self) -> collections.Counter:
    """Examines pending records; returns {cause: records} of all so far."""
    total = self._total()  # first, since more may arrive meanwhile
    for host in self._hosts.values():
      for position, records in host.take():
        if position not in self._known:
          self._count(records if isinstance(records, list) else [records])
        if host.repeated:
          self._known.add(position)
    if (not_examined := total - self._examined) > 0:
      self._counts[_NOT_EXAMINED] = not_examined
    else:
      self._counts.pop(_NOT_EXAMINED, None)
    return self._counts

  def _total(self) -> int:
    hosts = self._hosts.values()
    positions = [host.positions() for host in hosts if host.repeated]
    # Several hosts may have read a position, as a report after evaluations.
    return len(set().union(*positions)) + sum(
      host.total() for host in hosts if not host.repeated
    )

  def _count(self, records: Sequence[bytes]) -> None:
    reasons = list(filter(None, map(self.validate, records)))
    # If all records of the image are valid, a transform raised the error.
    reason = reasons[0] if reasons else InvalidRecord("rejected by a transform")
    self._counts[reason.cause] += 1
    self._examined += 1
    if self._examined <= _MAX_LOGGED:
      LOGGER.warning(
        "Skipping %s of the %r split: %s.%s",
        repr(reason.name) if reason.name else "a record",
        self._split,
        reason,
        " Further ones are only counted."
        if self._examined == _MAX_LOGGED
        else "",
      )

  def __str__(self):
    counts = self.collect().most_common()
    if not counts:
      return "causes known to the data servers only"
    return ", ".join(f"{n:,} {cause}" for cause, n in counts)


class _RecordsOfHost:
  """The invalid records that the datasets of one host have set aside.

  Args:
    host: device whose memory holds them.
    records_per_image: number of records per image, 1 or 2.
    repeated: whether the same positions are read again.

  Attributes:
    repeated: as given.
  """

  def __init__(self, host: str, records_per_image: int, *, repeated: bool):
    self.repeated, self._one_record = repeated, records_per_image == 1
    # Neither on an accelerator, where tf.data could not use them, nor on
    # another host, which would be called for every batch.
    with tf.device(host):
      self._total = tf.Variable(0, dtype=tf.int64, trainable=False)
      self._pending = tf.lookup.experimental.MutableHashTable(
        tf.int64, tf.string, tf.constant("" if self._one_record else [""] * 2)
      )
      if repeated:
        self._positions = tf.lookup.experimental.MutableHashTable(
          tf.int64, tf.int64, 0
        )

  def set_aside(self, positions, serialized) -> tf.Operation:
    """Counts records and keeps them; see `InvalidRecords.recorder`."""
    if self._one_record:
      real = serialized != PADDING
      positions = tf.boolean_mask(positions, real)
      serialized = tf.boolean_mask(serialized, real)
    room = tf.maximum(_MAX_PENDING - self._pending.size(), 0)
    insert = self._pending.insert(positions[:room], serialized[:room])
    count = self._total.assign_add(tf.size(positions, tf.int64))
    if not self.repeated:
      return tf.group(insert, count)
    remember = self._positions.insert(positions, positions)
    return tf.group(insert, count, remember)

  def total(self) -> int:
    """Returns the number of records so far."""
    return int(self._total)

  def positions(self) -> set[int]:
    """Returns the positions of all records so far, if they are repeated."""
    return set(self._positions.export()[0].numpy().tolist())

  def take(self) -> list[tuple]:
    """Returns the records to examine and keeps them no longer.

    Returns:
      (position, bytes or list of bytes) of each image, ascending.
    """
    pending = self._pending.export()
    rows = zip(*(column.numpy().tolist() for column in pending))
    self._pending.remove(pending[0])
    return sorted(rows)
