"""Metadata of a dataset on disk: shards, counts, classes, checksums.

It comes from the `index.json` next to our shards, from the `dataset_info.json`
of TFDS, or, for any other TFRecord files such as the Model Garden's, from
reading the shards through once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from nfnets_tf.data.tfrecords import (
  Fields,
  read_features,
  read_filename,
  read_records,
  read_segment,
)
from nfnets_tf.errors import RunError, UserError, plain_message
from nfnets_tf.fileio import read_json, write_atomically

LOGGER = logging.getLogger("nfnets_tf")

INDEX = "index.json"
# Marks a directory whose shards are still being written.
UNFINISHED = "preparing.json"
_TFDS_INDEX = "dataset_info.json"
_SCANS = "~/.cache/nfnets_tf/scans"


@dataclasses.dataclass(frozen=True)
class SplitInfo:
  """One split of a dataset.

  Attributes:
    files: paths of the shards.
    counts: number of examples in each shard.
    num_classes: number of classes; of a scanned split, one more than its
      largest label.
    class_names: in the order of the labels; empty if they are unknown.
    fields: names of the features of an example.
    checksums: SHA-256 of each shard, in hexadecimal, None where it is unknown;
      empty if all are.
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  num_classes: int
  class_names: tuple[str, ...]
  fields: Fields = Fields()
  checksums: tuple[str | None, ...] = ()

  @property
  def num_examples(self) -> int:
    """Number of examples in the split."""
    return sum(self.counts)


def evaluation_steps(info: SplitInfo, batch_size: int) -> int:
  """Returns the number of batches that hold the whole split."""
  return -(-info.num_examples // batch_size)


def read_split_info(
  directory: str,
  split: str,
  fields: Fields | None = None,
  *,
  check_sizes: bool = True,
) -> SplitInfo:
  """Reads the metadata of a split and checks that its shards are complete.

  Args:
    directory: of shards with an index, of a version of a TFDS dataset, or of
      other TFRecord files `SPLIT-*`.
    split: name of the split.
    fields: names of the features; None means those in the TFDS metadata, and
      ImageNet's elsewhere.
    check_sizes: whether every shard must have the size that the index states.

  Raises:
    UserError: if the directory or the split is missing, or a shard is missing,
      of another size than its index states, empty or without labels.
  """
  if not tf.io.gfile.isdir(directory):
    raise UserError(
      f"the data folder {directory!r} does not exist; bind DATA_DIR to a folder"
      f" of {split}-*.tfrecord shards."
    )

  def has(name):
    return tf.io.gfile.exists(os.path.join(directory, name))

  if has(INDEX):
    info = _read_index(directory, split, fields or Fields(), check_sizes)
  elif has(_TFDS_INDEX):
    info = _read_tfds_info(directory, split, fields)
  elif has(UNFINISHED):
    raise UserError(
      f"the shards in {directory!r} are incomplete; rerun the job that writes"
      " them to resume it."
    )
  else:
    info = _scan(directory, split, fields or Fields())
  if not info.num_examples:
    raise UserError(
      f"the {split!r} split in {directory!r} holds no examples; expected at"
      " least one: write the shards again, or bind DATA_DIR to another folder."
    )
  return info


def count_classes(*, directory: str | None, split: str) -> int:
  """Returns the number of classes of a split; see `read_split_info`."""
  return read_split_info(_require_directory(directory), split).num_classes


def count_examples(*, directory: str | None, split: str) -> int:
  """Returns the number of examples of a split; see `read_split_info`."""
  return read_split_info(_require_directory(directory), split).num_examples


def _require_directory(directory: str | None) -> str:
  if not directory:
    raise UserError(
      "DATA_DIR is not given; bind it to a folder of train-* and heldout-*"
      " shards."
    )
  return os.path.expanduser(directory)


def read_filenames(info: SplitInfo) -> list[str]:
  """Returns the file name of every example in order, "" where it has none."""
  return [
    read_filename(serialized, info.fields)
    for path, count in zip(info.files, info.counts)
    for serialized in read_segment(path, 0, count).as_numpy_iterator()
  ]


def describe_split(shards: Sequence[Mapping], num_classes: int) -> dict:
  """Returns a split's part of the index, of entries by `write_shard`."""
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
  """Writes the index, which makes a directory of shards a dataset."""
  write_atomically(os.path.join(directory, INDEX), json.dumps(index, indent=1))


def _read_index(directory, split, fields, check_sizes: bool) -> SplitInfo:
  path = os.path.join(directory, INDEX)
  content = read_json(path)
  if missing := {"splits", "class_names"} - content.keys():
    raise UserError(
      f"{path!r} lacks {', '.join(sorted(missing))}; expected the index of a"
      " dataset: bind DATA_DIR to the folder of one, or write it again."
    )
  if split not in content["splits"]:
    raise _missing_split(directory, split, content["splits"])
  shards = content["splits"][split]["shards"]
  files = tuple(os.path.join(directory, shard["file"]) for shard in shards)
  if check_sizes:
    for file, shard in zip(files, shards):
      _check_size(file, shard["bytes"])
  names = tuple(content["class_names"])
  counts = tuple(shard["examples"] for shard in shards)
  checksums = tuple(shard.get("sha256") for shard in shards)
  return SplitInfo(files, counts, len(names), names, fields, checksums)


def _check_size(path: str, expected: int) -> None:
  size = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else None
  if size != expected:
    state = "is missing" if size is None else f"has {size:,} bytes"
    raise UserError(
      f"the shard {path!r} {state}, but {INDEX} states {expected:,} bytes;"
      " restore the shard or write the dataset again."
    )


def _missing_split(directory: str, split: str, known) -> UserError:
  return UserError(
    f"{directory!r} has no split {split!r}; its index lists"
    f" {', '.join(map(repr, known))}: bind heldout/pipeline.Split.split,"
    " train/pipeline.Split.split or, of a check, CheckShardsJob.splits to"
    " those."
  )


def _read_tfds_info(directory, split, fields) -> SplitInfo:
  import tensorflow_datasets as tfds  # seconds to import, and rarely needed

  info = tfds.builder_from_directory(directory).info
  if split not in info.splits:
    raise _missing_split(directory, split, info.splits)
  split_info = info.splits[split]
  if split_info.filename_template.filetype_suffix != "tfrecord":
    raise UserError(
      f"the TFDS dataset in {directory!r} is stored as"
      f" {split_info.filename_template.filetype_suffix}; expected tfrecord:"
      " prepare it again with that file_format."
    )
  fields = fields or _tfds_fields(directory, info.features)
  names = tuple(info.features[fields.label].names)
  counts = tuple(map(int, split_info.shard_lengths))
  files = tuple(map(str, split_info.filepaths))
  return SplitInfo(files, counts, len(names), names, fields)


def _tfds_fields(directory: str, features) -> Fields:
  import tensorflow_datasets as tfds

  images, labels = (
    [name for name in sorted(features) if isinstance(features[name], kind)]
    for kind in (tfds.features.Image, tfds.features.ClassLabel)
  )
  if len(images) != 1 or len(labels) != 1:
    raise UserError(
      f"the TFDS dataset in {directory!r} has the images {images} and labels"
      f" {labels}; expected one of each: bind pipeline.Split.fields to choose,"
      " or prepare your own shards."
    )
  return Fields(images[0], labels[0], "file_name")


def _scan(directory: str, split: str, fields: Fields) -> SplitInfo:
  """Reads shards through, once: the counts are cached until a file changes."""
  names = sorted(tf.io.gfile.listdir(directory))
  # A pattern would give brackets in the path a meaning.
  files = [
    os.path.join(directory, name)
    for name in names
    if name.startswith(f"{split}-")
  ]
  if not files:
    holds = f"it holds {', '.join(names[:3])}" if names else "it is empty"
    raise UserError(
      f"the data folder {directory!r} has no {split}-* shards ({holds}); bind"
      " DATA_DIR to a folder of TFRecord shards."
    )
  cache = os.path.join(
    os.path.expanduser(_SCANS), f"{_key(files, fields)}.json"
  )
  if tf.io.gfile.exists(cache):
    scanned = read_json(cache)
  else:
    LOGGER.info(
      "Counting the records of %d shards in %s.", len(files), directory
    )
    labels = [_read_labels(file, fields) for file in files]
    largest = max((max(some) for some in labels if some), default=-1)
    scanned = {"counts": [len(x) for x in labels], "classes": largest + 1}
    try:
      tf.io.gfile.makedirs(os.path.dirname(cache))
      write_atomically(cache, json.dumps(scanned))
    except (RunError, tf.errors.OpError) as error:
      LOGGER.warning("The record counts are not cached: %s", error)
  counts = tuple(scanned["counts"])
  return SplitInfo(tuple(files), counts, scanned["classes"], (), fields)


def _key(files, fields: Fields) -> str:
  stats = [(file, tf.io.gfile.stat(file)) for file in files]
  state = [(file, stat.length, stat.mtime_nsec) for file, stat in stats]
  return hashlib.sha256(repr((state, fields)).encode()).hexdigest()[:24]


def _read_labels(path: str, fields: Fields) -> list[int]:
  labels = []
  try:
    for serialized in read_records(path).as_numpy_iterator():
      labels.append(_read_label(serialized, fields))
  except tf.errors.DataLossError as error:
    raise UserError(
      f"the shard {path!r} is not a whole TFRecord file after {len(labels)}"
      f" records ({plain_message(error)}); restore it, or write the shards"
      " again."
    ) from error
  except ValueError as error:
    raise UserError(
      f"record {len(labels)} of the shard {path!r} has no label >="
      f" {fields.first_label} in {fields.label!r}; write the shards again with"
      " one label per image, or bind pipeline.Split.fields to their names."
    ) from error
  return labels


def _read_label(serialized: bytes, fields: Fields) -> int:
  (label,) = read_features(serialized, fields).labels
  if label < 0:
    raise ValueError(label)
  return label
