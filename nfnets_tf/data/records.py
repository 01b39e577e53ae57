"""Shards: TFRecord files of labelled images, with an index beside them.

A data set is a folder of `SPLIT-00000-of-00008.tfrecord` files of
`tf.train.Example` under the field names of ImageNet's shards, and an
`index.json` that counts them. A folder without an index is scanned instead.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping, Sequence

import tensorflow as tf

from nfnets_tf.ops.errors import UserError

INDEX = "index.json"
IMAGE, LABEL = "image/encoded", "image/class/label"
FILENAME = "image/filename"


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
    strings = {
      IMAGE: self.encoded,
      "image/format": self.format.encode(),
      "image/class/text": self.text.encode(),
      FILENAME: self.filename.encode(),
    }
    features = {
      name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
      for name, value in strings.items()
    }
    label = tf.train.Int64List(value=[self.label])
    features[LABEL] = tf.train.Feature(int64_list=label)
    return tf.train.Example(
      features=tf.train.Features(feature=features)
    ).SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class SplitIndex:
  """What one split of a data set holds.

  Attributes:
    files: paths of the shards.
    counts: number of examples in each.
    num_classes: number of classes; of a scanned split, one more than its
      largest label.
    class_names: in the order of the labels; empty if the shards have no index.
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  num_classes: int
  class_names: tuple[str, ...]

  @property
  def num_examples(self) -> int:
    """Number of examples in the split."""
    return sum(self.counts)


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
    index = {"format": 1, "class_names": list(class_names), "splits": {}}
    for split, records in splits.items():
      index["splits"][split] = _write_split(
        partial, split, records, num_shards[split], len(class_names)
      )
    with tf.io.gfile.GFile(os.path.join(partial, INDEX), "w") as file:
      json.dump(index, file, indent=1)
    tf.io.gfile.rename(partial, directory)
  except BaseException:
    tf.io.gfile.rmtree(partial)
    raise


def _check_label(record: Record, num_classes: int) -> None:
  if not 0 <= record.label < num_classes:
    raise UserError(
      f"{record.filename!r} has label {record.label}; expected 0 to"
      f" {num_classes - 1}, one for each of the {num_classes} class names."
    )


def _write_split(
  directory, split, records, num_shards, num_classes
) -> list[dict]:
  shards = []
  for shard in range(num_shards):
    name = f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"
    part = records[shard::num_shards]
    with tf.io.TFRecordWriter(os.path.join(directory, name)) as writer:
      for record in part:
        _check_label(record, num_classes)
        writer.write(record.serialize())
    size = tf.io.gfile.stat(os.path.join(directory, name)).length
    shards.append({"file": name, "examples": len(part), "bytes": size})
  return shards


def read_index(directory: str, split: str) -> SplitIndex:
  """Finds the shards of a split and checks that they can be trained on.

  Raises:
    UserError: if the folder or the split is missing, or a shard is missing, of
      another size than its index says, empty or without labels.
  """
  if not tf.io.gfile.isdir(directory):
    raise UserError(
      f"the data folder {directory!r} does not exist; bind DATA_DIR to a folder"
      f" of {split}-*.tfrecord shards."
    )
  path = os.path.join(directory, INDEX)
  if tf.io.gfile.exists(path):
    with tf.io.gfile.GFile(path) as file:
      index = _from_json(directory, split, json.load(file))
  else:
    index = _scan(directory, split)
  if not index.num_examples:
    raise UserError(
      f"the {split!r} split in {directory!r} holds no examples; expected at"
      " least one: write the shards again, or bind DATA_DIR to another folder."
    )
  return index


def _from_json(directory: str, split: str, content: dict) -> SplitIndex:
  if split not in content["splits"]:
    raise UserError(
      f"{directory!r} has no split {split!r}; its index lists"
      f" {', '.join(map(repr, content['splits']))}: bind the split to one."
    )
  shards = content["splits"][split]
  files = tuple(os.path.join(directory, shard["file"]) for shard in shards)
  for path, shard in zip(files, shards):
    size = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else None
    if size != shard["bytes"]:
      state = "is missing" if size is None else f"has {size:,} bytes"
      raise UserError(
        f"the shard {path!r} {state}, but {INDEX} says {shard['bytes']:,}"
        " bytes; restore the shard or write the data set again."
      )
  names = tuple(content["class_names"])
  counts = tuple(shard["examples"] for shard in shards)
  return SplitIndex(files, counts, len(names), names)


def _scan(directory: str, split: str) -> SplitIndex:
  """Counts the examples and labels of shards that have no index."""
  files = sorted(tf.io.gfile.glob(os.path.join(directory, f"{split}-*")))
  if not files:
    found = sorted(tf.io.gfile.listdir(directory))[:3]
    holds = f"it holds {', '.join(found)}" if found else "it is empty"
    raise UserError(
      f"the data folder {directory!r} has no {split}-* shards ({holds}); bind"
      " DATA_DIR to a folder of TFRecord shards."
    )
  counts, largest = [], 0
  for path in files:
    labels = _labels(path)
    counts.append(len(labels))
    largest = max([largest, *labels])
  return SplitIndex(tuple(files), tuple(counts), largest + 1, ())


def _labels(path: str) -> list[int]:
  """Returns the labels of a shard, each of which must be there and >= 0."""
  feature = {LABEL: tf.io.FixedLenFeature([], tf.int64, default_value=-1)}
  batches = tf.data.TFRecordDataset(path).batch(1024)
  batches = batches.map(lambda x: tf.io.parse_example(x, feature)[LABEL])
  labels = []
  try:
    for batch in batches:
      labels.extend(batch.numpy().tolist())
  except tf.errors.DataLossError as error:
    raise UserError(
      f"the shard {path!r} is not a whole TFRecord file after {len(labels)}"
      f" records ({error.message}); restore it or write the shards again."
    ) from error
  if labels and min(labels) < 0:
    position = labels.index(min(labels))
    raise UserError(
      f"record {position} of the shard {path!r} has no label of 0 or more in"
      f" {LABEL!r}; write the shards again with one label for every image."
    )
  return labels


def read_filenames(index: SplitIndex) -> list[str]:
  """Returns the file name of every example, "" where it has none, in order."""
  feature = {FILENAME: tf.io.FixedLenFeature([], tf.string, default_value="")}
  batches = tf.data.TFRecordDataset(list(index.files)).batch(1024)
  batches = batches.map(lambda x: tf.io.parse_example(x, feature)[FILENAME])
  return [name.decode() for batch in batches for name in batch.numpy()]
