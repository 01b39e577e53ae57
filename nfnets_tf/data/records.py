"""Shards: TFRecord files of labelled images, and the index written beside them.

A data set is a folder of `SPLIT-00000-of-00008.tfrecord` files of
`tf.train.Example` under the field names of ImageNet's shards, and an
`index.json` that counts, sizes and sums them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import file_sha256

INDEX = "index.json"
# Lies beside shards that are still being written.
UNFINISHED = "preparing.json"


@dataclasses.dataclass(frozen=True)
class Fields:
  """What a `tf.train.Example` calls its parts.

  The defaults are those of ImageNet's and the Model Garden's shards, which
  count classes from 1: bind `first_label` to 1 for them. TFDS writes "image",
  "label" and "file_name".

  Attributes:
    image: bytes of the encoded image.
    label: one integer.
    name: of the image's file; may be missing.
    first_label: the label of class 0.
    raw: whether `image` holds no file but height x width x 3 bytes, of the
      integers `height` and `width`.
    height, width: see `raw`.
  """

  image: str = "image/encoded"
  label: str = "image/class/label"
  name: str = "image/filename"
  first_label: int = 0
  raw: bool = False
  height: str = "image/height"
  width: str = "image/width"


@dataclasses.dataclass(frozen=True)
class Record:
  """One labelled image: its encoded bytes, class number and class name."""

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


def write_dataset(
  directory: str,
  splits: Mapping[str, Sequence[Record]],
  *,
  num_shards: Mapping[str, int],
  class_names: Sequence[str],
) -> None:
  """Writes shards and their index; the folder appears whole or not at all.

  Args:
    directory: to be made; must not exist.
    splits: records of each split, dealt round-robin to its shards.
    num_shards: number of shards of each split.
    class_names: name of every class.

  Raises:
    UserError: if a label has no name or the folder exists.
  """
  if tf.io.gfile.exists(directory):
    raise UserError(
      f"the folder {directory!r} exists already and is not overwritten; remove"
      " it or write to another folder."
    )
  partial = f"{directory}.partial-{uuid.uuid4().hex[:8]}"
  tf.io.gfile.makedirs(partial)
  try:
    index = {"format": 2, "class_names": list(class_names), "splits": {}}
    for split, records in splits.items():
      index["splits"][split] = _write_split(
        partial, split, records, num_shards[split], len(class_names)
      )
    write_index(partial, index)
    tf.io.gfile.rename(partial, directory)
  except BaseException:
    tf.io.gfile.rmtree(partial)
    raise


def _write_split(directory, split, records, num_shards, num_classes) -> dict:
  written = []
  for shard in range(num_shards):
    part = records[shard::num_shards]
    path = os.path.join(directory, shard_name(split, shard, num_shards))
    written.append(write_shard(path, _examples(part, num_classes)))
  return describe_split(written, num_classes)


def _examples(records: Iterable[Record], num_classes: int):
  for record in records:
    check_label(record.filename, record.label, num_classes)
    yield record.label, record.serialize()


def check_label(filename: str, label: int, num_classes: int) -> None:
  """Raises a UserError unless the label is that of a class."""
  if not 0 <= label < num_classes:
    raise UserError(
      f"{filename!r} has label {label}; expected 0 to {num_classes - 1}, one"
      f" for each of the {num_classes} class names."
    )


def shard_name(split: str, shard: int, num_shards: int) -> str:
  """Returns a shard's file name."""
  return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def write_shard(path: str, examples: Iterable[tuple[int, bytes]]) -> dict:
  """Writes one shard; the file appears whole or not at all.

  Args:
    path: of the file.
    examples: (label, serialized example) of each.

  Returns:
    Its entry in the index: file, examples, bytes, sha256, and under "labels"
    {label: number of examples}.
  """
  partial = f"{path}.partial-{uuid.uuid4().hex[:8]}"
  labels = collections.Counter()
  try:
    with tf.io.TFRecordWriter(partial) as writer:
      for label, serialized in examples:
        writer.write(serialized)
        labels[label] += 1
  except BaseException:
    tf.io.gfile.remove(partial)
    raise
  entry = {
    "file": os.path.basename(path),
    "examples": sum(labels.values()),
    "bytes": tf.io.gfile.stat(partial).length,
    "sha256": file_sha256(partial),
    "labels": dict(labels),
  }
  tf.io.gfile.rename(partial, path, overwrite=True)
  return entry


def describe_split(shards: Sequence[Mapping], num_classes: int) -> dict:
  """Returns a split's part of the index.

  Args:
    shards: what `write_shard` returned for each.
    num_classes: number of classes.
  """
  histogram = [0] * num_classes
  for shard in shards:
    for label, count in shard["labels"].items():
      histogram[int(label)] += count
  entries = [
    {key: shard[key] for key in ("file", "examples", "bytes", "sha256")}
    for shard in shards
  ]
  return {
    "examples": sum(entry["examples"] for entry in entries),
    "bytes": sum(entry["bytes"] for entry in entries),
    "examples_by_class": histogram,
    "shards": entries,
  }


def write_index(directory: str, index: Mapping) -> None:
  """Writes the index: with it the folder is a data set."""
  path = os.path.join(directory, INDEX)
  with tf.io.gfile.GFile(f"{path}.partial", "w") as file:
    json.dump(index, file, indent=1)
  tf.io.gfile.rename(f"{path}.partial", path, overwrite=True)
