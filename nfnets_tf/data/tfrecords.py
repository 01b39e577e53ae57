"""Shards on disk: TFRecord files of `tf.train.Example`, read and written.

The only module that knows this format. Everything else handles serialized
records as opaque strings and takes images, labels and names from the functions
below, so another format of shards is another set of these functions.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError

from nfnets_tf.errors import require
from nfnets_tf.fileio import file_sha256
from nfnets_tf.ranges import accepts, flag, integer

# Followed by a shard's path, it replaces a record that cannot be read there:
# no parser accepts it as a `tf.train.Example`.
UNREADABLE = b"not readable in "


@accepts(first_label=integer(0), raw=flag())
@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of the features of a `tf.train.Example`.

  The defaults are those of ImageNet's and the Model Garden's shards, which
  count classes from 1: bind `first_label` to 1 for them. TFDS writes "image",
  "label" and "file_name".

  Attributes:
    image: bytes of the encoded image.
    label: one integer.
    name: file name of the image; may be missing.
    first_label: label of class 0.
    raw: whether `image` holds decoded pixels, height x width x 3 bytes, whose
      size is in `height` and `width`.
    height: integer, in pixels; read if `raw`.
    width: integer, in pixels; read if `raw`.

  Raises:
    UserError: if a name is empty or the first label is out of range.
  """

  image: str = "image/encoded"
  label: str = "image/class/label"
  name: str = "image/filename"
  first_label: int = 0
  raw: bool = False
  height: str = "image/height"
  width: str = "image/width"

  def __post_init__(self):
    for name in ("image", "label", "name", "height", "width"):
      value = getattr(self, name)
      valid = isinstance(value, str) and value
      require(valid, f"tfrecords.Fields.{name}", value, "a feature's name")


@dataclasses.dataclass(frozen=True)
class Record:
  """One labeled image, as it is written.

  Attributes:
    encoded: bytes of the image file.
    label: class number, from 0.
    text: name of the class.
    filename: path of the image in its source.
    format: such as "jpeg"; "" if unknown.
  """

  encoded: bytes
  label: int
  text: str
  filename: str
  format: str

  def serialize(self) -> bytes:
    """Returns the record as a serialized `tf.train.Example`."""
    fields = Fields()
    strings = {
      fields.image: self.encoded,
      "image/format": self.format.encode(),
      "image/class/text": self.text.encode(),
      fields.name: self.filename.encode(),
    }
    features = {
      name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
      for name, value in strings.items()
    }
    label = tf.train.Int64List(value=[self.label])
    features[fields.label] = tf.train.Feature(int64_list=label)
    return tf.train.Example(
      features=tf.train.Features(feature=features)
    ).SerializeToString(deterministic=True)


class FeatureValues(NamedTuple):
  """All values of an example's features, valid or not.

  Attributes:
    images: bytes of each image; a valid example has one.
    labels: class numbers, counted from 0; a valid example has one.
    filename: "" if missing.
    heights: in pixels; one if the image is raw.
    widths: in pixels; one if the image is raw.
  """

  images: tuple[bytes, ...]
  labels: tuple[int, ...]
  filename: str
  heights: tuple[int, ...] = ()
  widths: tuple[int, ...] = ()


def read_features(serialized: bytes, fields: Fields) -> FeatureValues:
  """Returns the features of an example, without validating them.

  Raises:
    ValueError: if the bytes are not a `tf.train.Example`.
  """
  try:
    features = tf.train.Example.FromString(serialized).features.feature
  except DecodeError as error:
    raise ValueError("not a tf.train.Example") from error

  def values(name, kind):
    # Indexing a map field with an unknown name would insert it.
    return getattr(features[name], kind).value if name in features else ()

  names = values(fields.name, "bytes_list")
  return FeatureValues(
    tuple(values(fields.image, "bytes_list")),
    tuple(x - fields.first_label for x in values(fields.label, "int64_list")),
    names[0].decode(errors="replace") if names else "",
    tuple(values(fields.height, "int64_list")),
    tuple(values(fields.width, "int64_list")),
  )


def describe_features(serialized: bytes) -> str:
  """Returns the names and kinds of an example's features, in words."""
  features = tf.train.Example.FromString(serialized).features.feature
  kinds = {
    "bytes_list": "bytes",
    "int64_list": "integer",
    "float_list": "float",
  }
  return ", ".join(
    f"{name} ({kinds.get(feature.WhichOneof('kind'), 'empty')})"
    for name, feature in sorted(features.items())
  )


def describe_label(serialized: bytes, fields: Fields) -> str:
  """Returns what an example has instead of one label, in words."""
  features = tf.train.Example.FromString(serialized).features.feature
  if fields.label not in features:
    return f"the record has {describe_features(serialized) or 'no features'}"
  feature = features[fields.label]
  kind = feature.WhichOneof("kind")
  values = getattr(feature, kind).value if kind else ()
  if not values:
    return "it is empty"
  if kind == "int64_list":
    return f"it holds {len(values)} integers"
  return f"it holds {kind.split('_')[0]}, such as {values[0]!r:.40}"


def read_filename(serialized: bytes, fields: Fields) -> str:
  """Returns an example's file name, "" if missing or the record is invalid."""
  try:
    return read_features(serialized, fields).filename
  except ValueError:
    return ""


def parse_image_and_label(
  serialized: tf.Tensor, fields: Fields
) -> tuple[tf.Tensor, tf.Tensor]:
  """Parses one example, string [], eagerly or in a graph.

  Returns:
    The image, an encoded string [] or uint8 [height, width, 3] if it is stored
    raw, and the class number, int64 [], from 0.

  Raises:
    tf.errors.InvalidArgumentError: if a feature is missing or malformed.
  """
  kinds = {fields.image: tf.string, fields.label: tf.int64}
  if fields.raw:
    kinds.update({fields.height: tf.int64, fields.width: tf.int64})
  parsed = tf.io.parse_single_example(
    serialized,
    {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()},
  )
  image = parsed[fields.image]
  if fields.raw:
    shape = [parsed[fields.height], parsed[fields.width], 3]
    image = tf.reshape(tf.io.decode_raw(image, tf.uint8), shape)
  return image, parsed[fields.label] - fields.first_label


def read_records(files: str | list[str]) -> tf.data.Dataset:
  """Returns the serialized records of shards in order, strings []."""
  return tf.data.TFRecordDataset(files)


def read_segment(path, begin, size) -> tf.data.Dataset:
  """Reads consecutive records of a shard.

  A record that cannot be read becomes `UNREADABLE` and the path, so that all
  others keep their positions.

  Args:
    path: of the shard; string [].
    begin: number of the first record; int64 [].
    size: number of records; int64 [].

  Returns:
    `size` serialized records, strings [].

  Raises:
    tf.errors.OpError: if the shard cannot be opened or is empty.
  """
  # `ignore_errors` would retry forever to open a file that cannot be opened.
  first = tf.data.FixedLengthRecordDataset(path, 1).take(1).get_single_element()
  with tf.control_dependencies([first]):
    path = tf.identity(path)
  records = tf.data.TFRecordDataset(path).skip(begin).take(size)
  missing = tf.data.Dataset.from_tensors(UNREADABLE + path).repeat()
  return records.ignore_errors().concatenate(missing).take(size)


def record_spans(path: str) -> Iterator[tuple[int, int]]:
  """Yields (offset, length) in bytes of every record of a shard."""
  with tf.io.gfile.GFile(path, "rb") as stream:
    size, offset = stream.size(), 0
    while offset < size:
      stream.seek(offset)
      length = int.from_bytes(stream.read(8), "little")
      yield offset + 12, length
      offset += length + 16  # length, its checksum, the record, its checksum


def shard_name(split: str, shard: int, num_shards: int) -> str:
  """Returns a shard's file name."""
  return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def write_shard(path: str, examples: Iterable[tuple[int, bytes]]) -> dict:
  """Writes one shard; the file appears complete or not at all.

  Args:
    path: of the file.
    examples: (label, serialized example) of each record.

  Returns:
    The shard's entry in the index: file, examples, bytes, sha256, and under
    "labels" {label: number of examples}.
  """
  partial = f"{path}.partial-{uuid.uuid4().hex[:8]}"
  labels = collections.Counter()
  try:
    with tf.io.TFRecordWriter(partial) as writer:
      for label, serialized in examples:
        writer.write(serialized)
        labels[label] += 1
    entry = {
      "file": os.path.basename(path),
      "examples": sum(labels.values()),
      "bytes": tf.io.gfile.stat(partial).length,
      "sha256": file_sha256(partial),
      "labels": dict(labels),
    }
    tf.io.gfile.rename(partial, path, overwrite=True)
  except BaseException:
    with contextlib.suppress(tf.errors.NotFoundError):
      tf.io.gfile.remove(partial)
    raise
  return entry
