"""What a data set on disk holds, whoever wrote it.

Shards with our `index.json`; files of TFDS, with its `dataset_info.json`; any
other TFRecord files, such as the Model Garden's, which are read through once
and counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os

import tensorflow as tf

from nfnets_tf.data.records import INDEX, UNFINISHED, Fields
from nfnets_tf.ops.errors import UserError

LOGGER = logging.getLogger("nfnets_tf")

_TFDS_INDEX = "dataset_info.json"
_SCANS = "~/.cache/nfnets_tf/scans"


@dataclasses.dataclass(frozen=True)
class SplitIndex:
  """What one split of a data set holds.

  Attributes:
    files: paths of the shards.
    counts: number of examples in each.
    num_classes: number of classes; of a scanned split, one more than its
      largest label.
    class_names: in the order of the labels; empty if the shards have no index.
    fields: what an example calls its parts.
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  num_classes: int
  class_names: tuple[str, ...]
  fields: Fields = Fields()

  @property
  def num_examples(self) -> int:
    """Number of examples in the split."""
    return sum(self.counts)


def read_index(
  directory: str,
  split: str,
  fields: Fields | None = None,
  *,
  check_sizes: bool = True,
) -> SplitIndex:
  """Finds the shards of a split and checks that they can be trained on.

  Args:
    directory: of shards with an index, of a TFDS data set's version, or of
      other TFRecord files `SPLIT-*`.
    split: name of the split.
    fields: what an example calls its parts; None is what TFDS says, and
      ImageNet's names elsewhere.
    check_sizes: whether every shard must have the size that our index says.

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
      content = json.load(file)
    if check_sizes:
      _check_sizes(directory, content["splits"].get(split, []))
    index = _from_json(directory, split, content, fields or Fields())
  elif tf.io.gfile.exists(os.path.join(directory, _TFDS_INDEX)):
    index = _from_tfds(directory, split, fields)
  elif tf.io.gfile.exists(os.path.join(directory, UNFINISHED)):
    raise UserError(
      f"the shards in {directory!r} are not all written; start the job that"
      " writes them again, and it goes on."
    )
  else:
    index = _scan(directory, split, fields or Fields())
  if not index.num_examples:
    raise UserError(
      f"the {split!r} split in {directory!r} holds no examples; expected at"
      " least one: write the shards again, or bind DATA_DIR to another folder."
    )
  return index


def _from_json(directory, split, content, fields) -> SplitIndex:
  if split not in content["splits"]:
    raise _no_split(directory, split, content["splits"])
  shards = _shards(content["splits"][split])
  files = tuple(os.path.join(directory, shard["file"]) for shard in shards)
  names = tuple(content["class_names"])
  counts = tuple(shard["examples"] for shard in shards)
  return SplitIndex(files, counts, len(names), names, fields)


def _shards(part) -> list[dict]:
  return part if isinstance(part, list) else part["shards"]  # of format 1


def _check_sizes(directory: str, part) -> None:
  for shard in _shards(part):
    path = os.path.join(directory, shard["file"])
    size = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else None
    if size != shard["bytes"]:
      state = "is missing" if size is None else f"has {size:,} bytes"
      raise UserError(
        f"the shard {path!r} {state}, but {INDEX} says {shard['bytes']:,}"
        " bytes; restore the shard or write the data set again."
      )


def _no_split(directory: str, split: str, there) -> UserError:
  return UserError(
    f"{directory!r} has no split {split!r}; its index lists"
    f" {', '.join(map(repr, there))}: bind the split to one."
  )


def _from_tfds(directory, split, fields) -> SplitIndex:
  import tensorflow_datasets as tfds  # seconds to import, and rarely needed

  info = tfds.builder_from_directory(directory).info
  if split not in info.splits:
    raise _no_split(directory, split, info.splits)
  found = info.splits[split]
  if found.filename_template.filetype_suffix != "tfrecord":
    raise UserError(
      f"the TFDS data set in {directory!r} is stored as"
      f" {found.filename_template.filetype_suffix}; expected tfrecord: prepare"
      " it again with that file_format."
    )
  fields = fields or _tfds_fields(directory, info.features)
  names = tuple(info.features[fields.label].names)
  counts = tuple(map(int, found.shard_lengths))
  files = tuple(map(str, found.filepaths))
  return SplitIndex(files, counts, len(names), names, fields)


def _tfds_fields(directory: str, features) -> Fields:
  import tensorflow_datasets as tfds

  images, labels = (
    [name for name, feature in features.items() if isinstance(feature, kind)]
    for kind in (tfds.features.Image, tfds.features.ClassLabel)
  )
  if len(images) != 1 or len(labels) != 1:
    raise UserError(
      f"the TFDS data set in {directory!r} has the images {images} and labels"
      f" {labels}; expected one of each: bind pipeline.Split.fields to choose,"
      " or prepare shards of your own."
    )
  return Fields(images[0], labels[0], "file_name")


def _scan(directory: str, split: str, fields: Fields) -> SplitIndex:
  """Counts the examples and labels of shards that have no index."""
  files = sorted(tf.io.gfile.glob(os.path.join(directory, f"{split}-*")))
  if not files:
    found = sorted(tf.io.gfile.listdir(directory))[:3]
    holds = f"it holds {', '.join(found)}" if found else "it is empty"
    raise UserError(
      f"the data folder {directory!r} has no {split}-* shards ({holds}); bind"
      " DATA_DIR to a folder of TFRecord shards."
    )
  path = os.path.join(os.path.expanduser(_SCANS), f"{_key(files, fields)}.json")
  if tf.io.gfile.exists(path):
    with tf.io.gfile.GFile(path) as file:
      kept = json.load(file)
  else:
    LOGGER.info("Counting %d shards in %s, once.", len(files), directory)
    labels = [_labels(file, fields) for file in files]
    largest = max((max(some) for some in labels if some), default=-1)
    kept = {"counts": [len(some) for some in labels], "classes": largest + 1}
    tf.io.gfile.makedirs(os.path.dirname(path))
    partial = f"{path}.partial-{os.getpid()}"
    with tf.io.gfile.GFile(partial, "w") as file:
      json.dump(kept, file)
    tf.io.gfile.rename(partial, path, overwrite=True)
  return SplitIndex(
    tuple(files), tuple(kept["counts"]), kept["classes"], (), fields
  )


def _key(files, fields) -> str:
  found = (tf.io.gfile.stat(file) for file in files)
  state = [(f, x.length, x.mtime_nsec) for f, x in zip(files, found)]
  return hashlib.sha256(repr((state, fields)).encode()).hexdigest()[:24]


def _labels(path: str, fields: Fields) -> list[int]:
  """Returns the labels of a shard, each of which must be there and >= 0."""
  name, first = fields.label, fields.first_label
  missing = tf.io.FixedLenFeature([], tf.int64, default_value=first - 1)
  batches = tf.data.TFRecordDataset(path).batch(1024)
  batches = batches.map(
    lambda x: tf.io.parse_example(x, {name: missing})[name] - first
  )
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
      f"record {position} of the shard {path!r} has no label of {first} or more"
      f" in {name!r}; write the shards again with one label for every image, or"
      " bind pipeline.Split.fields to what they have."
    )
  return labels


def read_filenames(index: SplitIndex) -> list[str]:
  """Returns the file name of every example, "" where it has none, in order."""
  name = index.fields.name
  feature = {name: tf.io.FixedLenFeature([], tf.string, default_value="")}
  batches = tf.data.TFRecordDataset(list(index.files)).batch(1024)
  batches = batches.map(lambda x: tf.io.parse_example(x, feature)[name])
  return [name.decode() for batch in batches for name in batch.numpy()]
