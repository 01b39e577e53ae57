"""Records that cannot be used: what is wrong with each, and how many."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence

import tensorflow as tf
from google.protobuf.message import DecodeError

from nfnets_tf.data.dimensions import MAX_PIXELS, pixel_count
from nfnets_tf.data.loading import PADDING
from nfnets_tf.data.preprocess import decode
from nfnets_tf.data.tfrecords import UNREADABLE, Fields
from nfnets_tf.errors import plain_message

LOGGER = logging.getLogger("nfnets_tf")

_NAMED = 5
# Records that lie aside until somebody counts them.
_KEPT = 1024
_MORE = "not examined"


@dataclasses.dataclass(frozen=True)
class Fault:
  """Why a record cannot be used.

  Attributes:
    cause: a few words, the same for all records of a kind.
    name: of the image's file, "" if unknown.
    detail: what exactly, "" if the cause says it.
  """

  cause: str
  name: str = ""
  detail: str = ""

  def __str__(self):
    return f"{self.cause} ({self.detail})" if self.detail else self.cause


class Examiner:
  """Says what is wrong with a record.

  Args:
    fields: what an example calls its parts.
    num_classes: labels are below it; None allows any.
    max_pixels: height times width that is decoded at most.
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

  def __call__(self, serialized: bytes) -> Fault | None:
    """Returns the first fault of a serialized example, or None."""
    if serialized.startswith(UNREADABLE):
      shard = serialized[len(UNREADABLE) :].decode(errors="replace")
      return Fault("not readable in its shard", detail=shard)
    try:
      features = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
      return Fault("no tf.train.Example")
    names = _values(features, self.fields.name, "bytes_list")
    name = names[0].decode(errors="replace") if names else ""
    fault = (
      self._label_fault(features)
      or self._image_fault(features)
      or self._parser_fault(serialized)
    )
    return fault and dataclasses.replace(fault, name=name)

  def label(self, features) -> int | None:
    """Returns the class number of an example's features, if it has one."""
    labels = _values(features, self.fields.label, "int64_list")
    return labels[0] - self.fields.first_label if len(labels) == 1 else None

  def _label_fault(self, features) -> Fault | None:
    label = self.label(features)
    if label is None:
      return Fault("without one label")
    classes = self.num_classes
    if label < 0 or (classes is not None and label >= classes):
      return Fault("label out of range", detail=f"class {label} of {classes}")
    return None

  def _image_fault(self, features) -> Fault | None:
    images = _values(features, self.fields.image, "bytes_list")
    if len(images) != 1:
      return Fault("without one image")
    if self.fields.raw:
      return self._raw_fault(features, images[0])
    image = tf.constant(images[0])
    try:
      pixels = int(pixel_count(image))
      if pixels > self.max_pixels:
        return Fault("image too large", detail=f"{pixels:,} pixels")
      height, width, _ = decode(image).shape
    except tf.errors.OpError as error:
      return Fault("image not decodable", detail=plain_message(error))
    if not height * width:
      return Fault("image not decodable", detail=f"{height} x {width} pixels")
    return None

  def _parser_fault(self, serialized: bytes) -> Fault | None:
    # TensorFlow's own parser refuses some damage that protobuf's does not.
    names = {self.fields.image: tf.string, self.fields.label: tf.int64}
    try:
      tf.io.parse_single_example(
        serialized,
        {name: tf.io.FixedLenFeature([], kind) for name, kind in names.items()},
      )
    except tf.errors.OpError as error:
      return Fault("no tf.train.Example", detail=plain_message(error))
    return None

  def _raw_fault(self, features, image: bytes) -> Fault | None:
    sides = [
      _values(features, name, "int64_list")
      for name in (self.fields.height, self.fields.width)
    ]
    if any(len(side) != 1 for side in sides):
      return Fault("without height and width")
    height, width = (side[0] for side in sides)
    if height < 1 or width < 1 or height * width * 3 != len(image):
      return Fault(
        "image not decodable",
        detail=f"{len(image)} bytes for {height} x {width} x 3",
      )
    return None


def _values(features, name: str, kind: str) -> Sequence:
  return getattr(features[name], kind).value if name in features else ()


class Faults:
  """Counts the records of a split that were left out, by cause.

  The pipeline only lays them aside, in TensorFlow's own containers: Python
  called from its threads would wait for a lock that whoever gives an iterator
  back holds, while that waits for the threads.

  Args:
    split: its name, for the log.
    examine: says what is wrong with a record.
    sources: number of records that an image is made of.
  """

  def __init__(self, split: str, examine: Examiner, sources: int = 1):
    self.examine = examine
    self._split, self._sources = split, sources
    self._counts = collections.Counter()
    self._number = self._records = None
    self._examined = 0
    # Of an evaluation: all bad places, and those examined.
    self._places, self._known = None, set()

  def recorder(self, *, repeated: bool = False) -> Callable[..., tf.Operation]:
    """Returns what lays records aside; to be called inside a data set.

    Its arguments are the positions, int64 [n], and the serialized records,
    strings [n] or [n, sources]. Positions that are `repeated`, as in every
    evaluation, are counted once.
    """
    if self._number is None:
      empty = tf.constant("" if self._sources == 1 else [""] * self._sources)
      with tf.device("CPU:0"):
        self._number = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._records = tf.lookup.experimental.MutableHashTable(
          tf.int64, tf.string, empty
        )
        if repeated:
          self._places = tf.lookup.experimental.MutableHashTable(
            tf.int64, tf.int64, 0
          )
    return self._lay_aside

  def _lay_aside(self, positions, serialized):
    if self._sources == 1:
      real = serialized != PADDING
      positions = tf.boolean_mask(positions, real)
      serialized = tf.boolean_mask(serialized, real)
    kept = tf.maximum(_KEPT - self._records.size(), 0)
    insert = self._records.insert(positions[:kept], serialized[:kept])
    number = self._number.assign_add(tf.size(positions, tf.int64))
    if self._places is None:
      return tf.group(insert, number)
    once = self._places.insert(positions, positions)
    return tf.group(insert, number, once)

  def collect(self) -> collections.Counter:
    """Returns {cause: number of records} of all until now; names new ones."""
    if self._number is not None:
      number = int(self._number)
      aside = self._records.export()
      found = zip(*(part.numpy().tolist() for part in aside))
      for position, records in sorted(found):
        if position not in self._known:
          self._count(records if isinstance(records, list) else [records])
          self._examined += 1
        if self._places is not None:
          self._known.add(position)
      self._records.remove(aside[0])
      if self._places is not None:
        number = int(self._places.size())
      if more := number - self._examined:
        self._counts[_MORE] = more
    return self._counts

  def _count(self, records: Sequence[bytes]) -> None:
    faults = list(filter(None, map(self.examine, records)))
    # Whatever is wrong then is wrong with the operations.
    fault = faults[0] if faults else Fault("refused by an operation")
    self._counts[fault.cause] += 1
    number = sum(n for cause, n in self._counts.items() if cause != _MORE)
    if number <= _NAMED:
      LOGGER.warning(
        "Left out %s of the %r split: %s.%s",
        repr(fault.name) if fault.name else "a record",
        self._split,
        fault,
        " Further ones are only counted." if number == _NAMED else "",
      )

  def __str__(self):
    counts = self.collect().most_common()
    if not counts:
      return "of causes that only data servers have seen"
    return ", ".join(f"{n:,} {cause}" for cause, n in counts)
