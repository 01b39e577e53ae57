"""Metadata of a dataset on disk: shards, counts, classes, checksums.

It comes from the `index.json` next to our shards, from the `dataset_info.json`
of TFDS, or, for any other TFRecord files such as the Model Garden's, from
`shard_scan`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from nfnets_tf.data.shard_scan import scan_shards
from nfnets_tf.data.tfrecords import Fields, read_filename, read_segment
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_json, write_atomically

if TYPE_CHECKING:
  from nfnets_tf.data.pipeline import Split

LOGGER = logging.getLogger("nfnets_tf")

INDEX = "index.json"
# Marks a directory whose shards are still being written.
UNFINISHED = "preparing.json"
_TFDS_INDEX = "dataset_info.json"
COUNT_FROM_1 = (
  "if the classes are counted from 1, bind pipeline.Split.fields ="
  " @tfrecords.Fields() and tfrecords.Fields.first_label = 1"
)


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
    examples_by_class: in the order of the labels; empty if unknown.
    hashes: tells the content of each shard from any other: its checksum, the
      SHA-256 of its records, or only its size (TFDS states no more).
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  num_classes: int
  class_names: tuple[str, ...]
  fields: Fields = Fields()
  checksums: tuple[str | None, ...] = ()
  examples_by_class: tuple[int, ...] = ()
  hashes: tuple[str, ...] = ()

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
    fields: names of the features; None and the defaults mean those in the TFDS
      metadata, and ImageNet's elsewhere.
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

  if fields == Fields():
    fields = None
  if has(INDEX):
    info = _read_index(directory, split, fields or Fields(), check_sizes)
  elif has(_TFDS_INDEX):
    info = _read_tfds_info(directory, split, fields, check_sizes)
  elif has(UNFINISHED):
    raise UserError(
      f"the shards in {directory!r} are incomplete; rerun the job that writes"
      " them to resume it."
    )
  else:
    info = _scan(directory, split, fields or Fields())
    if labels_begin_at_1(info):
      _warn_once(
        f"No example of the {split!r} split in {directory!r} has label 0; they"
        f" have 1 to {info.num_classes - 1}: {COUNT_FROM_1}."
      )
  if not info.num_examples:
    raise UserError(
      f"the {split!r} split in {directory!r} holds no examples; expected at"
      " least one: write the shards again, or bind DATA_DIR to another folder."
    )
  return info


def count_classes(*, split: Split | str, directory: str | None = None) -> int:
  """Returns the number of classes of a split, and warns of those without any.

  Args:
    split: as a run reads it, with its directory and fields; its `num_classes`
      is None. Or its name, as in configurations of earlier releases.
    directory: of a split that is given by its name.

  Raises:
    UserError: see `read_split_info`.
  """
  info = _read_info(split, directory)
  empty = [str(i) for i, n in enumerate(info.examples_by_class) if not n]
  if empty and not info.class_names and not labels_begin_at_1(info):
    _warn_once(
      f"{len(empty):,} of the {info.num_classes:,} classes of"
      f" {os.path.dirname(info.files[0])!r} have no example, such as"
      f" {', '.join(empty[:5])}: classes are counted by the largest label."
    )
  return info.num_classes


def count_examples(*, split: Split | str, directory: str | None = None) -> int:
  """Returns the number of examples of a split; see `count_classes`."""
  return _read_info(split, directory).num_examples


def _read_info(split: Split | str, directory: str | None) -> SplitInfo:
  if isinstance(split, str):
    return read_split_info(require_directory(directory), split)
  return split.read_info()


def require_directory(directory: str | None) -> str:
  """Returns a directory of shards with the home folder in place of "~".

  Raises:
    UserError: if there is none.
  """
  if not directory:
    raise UserError(
      "DATA_DIR is not given; bind it to a folder of train-* and heldout-*"
      " shards."
    )
  return os.path.expanduser(directory)


def labels_begin_at_1(info: SplitInfo) -> bool:
  """Returns whether all labels but 0 occur, as if they were counted from 1."""
  first, *others = info.examples_by_class or (1,)
  return not first and len(others) > 1 and all(others)


@functools.cache
def _warn_once(message: str) -> None:
  LOGGER.warning("%s", message)


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
  _warn_of_others(directory, split, {shard["file"] for shard in shards})
  names = tuple(content["class_names"])
  checksums = tuple(shard.get("sha256") for shard in shards)
  return SplitInfo(
    files,
    tuple(shard["examples"] for shard in shards),
    len(names),
    names,
    fields,
    checksums,
    tuple(content["splits"][split].get("examples_by_class", ())),
    tuple(x.get("sha256") or f"{x['bytes']} bytes" for x in shards),
  )


def _warn_of_others(directory: str, split: str, listed: set[str]) -> None:
  """Warns of what look like shards of a split, but are not in its index."""
  form = re.compile(rf"{re.escape(split)}-.*\d+-of-\d+(\.tfrecord)?")
  names = sorted(tf.io.gfile.listdir(directory))
  others = [x for x in names if form.fullmatch(x) and x not in listed]
  if others:
    _warn_once(
      f"{len(others):,} shards in {directory!r}, such as {others[0]!r}, are not"
      f" read: {INDEX} does not list them."
    )


def _check_size(path: str, expected: int) -> None:
  if (size := _size(path)) != expected:
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


def _read_tfds_info(
  directory: str, split: str, fields: Fields | None, check_sizes: bool
) -> SplitInfo:
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
  sizes = list(map(_size, files))
  if check_sizes:
    for file, count, size in zip(files, counts, sizes):
      if size is None or (count and not size):
        state = "is missing" if size is None else "is empty"
        raise UserError(
          f"the shard {file!r} {state}, but {_TFDS_INDEX} lists it with"
          f" {count:,} examples; restore it or prepare the dataset again."
        )
  hashes = tuple(f"{size} bytes" for size in sizes)
  return SplitInfo(files, counts, len(names), names, fields, hashes=hashes)


def _size(path: str) -> int | None:
  exists = tf.io.gfile.exists(path)
  return tf.io.gfile.stat(path).length if exists else None


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
  scan = scan_shards(directory, split, fields)
  classes = max(scan.labels, default=-1) + 1
  return SplitInfo(
    scan.files,
    scan.counts,
    classes,
    (),
    fields,
    examples_by_class=tuple(scan.labels.get(i, 0) for i in range(classes)),
    hashes=scan.hashes,
  )
