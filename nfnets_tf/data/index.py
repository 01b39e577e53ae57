"""What a data set on disk holds, whoever wrote it.

Shards with our `index.json`; files of TFDS, with its `dataset_info.json`; any
other TFRecord files, such as the Model Garden's, which are read through once
and counted.
"""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf

from nfnets_tf.data.records import INDEX, UNFINISHED, Fields
from nfnets_tf.data.scanning import scan
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_json

_TFDS_INDEX = "dataset_info.json"


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
    sums: SHA-256 of each shard; empty if it is not known.
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  num_classes: int
  class_names: tuple[str, ...]
  fields: Fields = Fields()
  sums: tuple[str, ...] = ()

  @property
  def num_examples(self) -> int:
    """Number of examples in the split."""
    return sum(self.counts)


def evaluation_steps(index: SplitIndex, batch_size: int) -> int:
  """Number of batches that hold the whole split."""
  return -(-index.num_examples // batch_size)


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
    content = read_json(path)
    if missing := {"splits", "class_names"} - content.keys():
      raise UserError(
        f"{path!r} lacks {', '.join(sorted(missing))}; expected the index of a"
        " data set: bind DATA_DIR to the folder of one, or write it again."
      )
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
    fields = fields or Fields()
    index = SplitIndex(*scan(directory, split, fields), (), fields)
  if not index.num_examples:
    raise UserError(
      f"the {split!r} split in {directory!r} holds no examples; expected at"
      " least one: write the shards again, or bind DATA_DIR to another folder."
    )
  return index


def count_classes(*, directory: str | None, split: str) -> int:
  """Returns the number of classes of shards; see `read_index`."""
  return read_index(_given(directory), split).num_classes


def count_examples(*, directory: str | None, split: str) -> int:
  """Returns the number of examples of a split; see `read_index`."""
  return read_index(_given(directory), split).num_examples


def _given(directory: str | None) -> str:
  if not directory:
    raise UserError(
      "DATA_DIR is not given; bind it to a folder of train-* and heldout-*"
      " shards."
    )
  return os.path.expanduser(directory)


def _from_json(directory, split, content, fields) -> SplitIndex:
  if split not in content["splits"]:
    raise _no_split(directory, split, content["splits"])
  shards = _shards(content["splits"][split])
  files = tuple(os.path.join(directory, shard["file"]) for shard in shards)
  names = tuple(content["class_names"])
  counts = tuple(shard["examples"] for shard in shards)
  sums = tuple(shard["sha256"] for shard in shards if "sha256" in shard)
  return SplitIndex(files, counts, len(names), names, fields, sums)


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
    f" {', '.join(map(repr, there))}: bind heldout/pipeline.Split.split,"
    " train/pipeline.Split.split or, of a check, CheckShardsJob.splits to"
    " those."
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


def read_filenames(index: SplitIndex) -> list[str]:
  """Returns the file name of every example, "" where it has none, in order."""
  name = index.fields.name
  feature = {name: tf.io.FixedLenFeature([], tf.string, default_value="")}
  batches = tf.data.TFRecordDataset(list(index.files)).batch(1024)
  batches = batches.map(lambda x: tf.io.parse_example(x, feature)[name])
  return [
    name.decode(errors="replace") for batch in batches for name in batch.numpy()
  ]
