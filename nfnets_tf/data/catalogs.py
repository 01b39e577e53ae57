"""What shards are made of: images that are listed but not yet read.

A catalog has `class_names`, `rule` (how its splits came about), `key` (changes
with what it lists), `splits` {name: references to its images} and `read`, which
makes a `Record` of a reference wherever the work is done.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from nfnets_tf.data.index import read_index
from nfnets_tf.data.listing import (
  check_share,
  digest,
  is_held_out,
  list_folder,
)
from nfnets_tf.data.records import Record, record_spans
from nfnets_tf.data.sources import Digits, read_image
from nfnets_tf.ops.errors import UserError

# A class number beyond this is more likely to be some other number.
_MAX_CLASSES = 1_000_000


class Catalog(Protocol):
  """What all catalogs have."""

  class_names: tuple[str, ...]
  rule: str
  key: str
  splits: Mapping[str, Sequence[Any]]

  def read(self, reference) -> Record:
    """Returns the record of a reference out of `splits`."""


class _Light:
  """A catalog that travels to workers without its list of images."""

  def __getstate__(self):
    return {**vars(self), "splits": {}}


class FolderCatalog(_Light):
  """A folder of class folders, split already or by the names of the files.

  Args:
    directory: the folder; see `list_folder`.
    heldout_share: share of every class that is held out.

  Raises:
    UserError: if that is no folder of class folders.
  """

  def __init__(self, *, directory: str, heldout_share: float):
    _check_images(directory)
    listing = list_folder(directory, heldout_share)
    self.directory = listing.directory
    self.class_names = listing.class_names
    self.splits, self.key = listing.splits, listing.key
    self.rule = (
      f"as the folder has it, or {heldout_share:g} of every class held out by"
      " the SHA-256 of the files' paths"
    )

  def read(self, reference) -> Record:
    """Returns the record of (path, label)."""
    path, label = reference
    return read_image(self.directory, path, label, self.class_names[label])


class CsvCatalog(_Light):
  """A CSV file with the columns path, label and perhaps split.

  Classes are the different labels, sorted: as numbers if all are whole numbers,
  which then must be 0, 1, 2, ... of classes that may be missing in between.

  Args:
    path: of the CSV file, with a line of column names.
    directory: that the images' paths are relative to.
    heldout_share: of the images that is held out, by the SHA-256 of their
      paths, if there is no column split.

  Raises:
    UserError: if the file or the folder is not there, columns are missing, a
      line has not all of them, or numbers are too large for those of classes.
  """

  def __init__(self, *, path: str, directory: str, heldout_share: float):
    _check_images(directory)
    check_share(heldout_share)
    self.directory = os.path.expanduser(directory)
    path = os.path.expanduser(path)
    if not tf.io.gfile.exists(path):
      raise UserError(
        f"the CSV file {path!r} does not exist; bind CsvCatalog.path to a file"
        " with the columns path and label."
      )
    with tf.io.gfile.GFile(path, "rb") as file:
      text = file.read().decode("utf-8-sig", errors="surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    self._check(path, rows)
    self.class_names = _class_names([row["label"] for row in rows])
    labels = {name: label for label, name in enumerate(self.class_names)}
    self.splits = {}
    for row in rows:
      split = row.get("split") or (
        "heldout" if is_held_out(row["path"], heldout_share) else "train"
      )
      reference = row["path"], labels[_plain(row["label"])]
      self.splits.setdefault(split, []).append(reference)
    self.key = digest(repr((self.directory, self.splits, self.class_names)))
    self.rule = (
      "the column split"
      if "split" in rows[0]
      else f"{heldout_share:g} held out by the SHA-256 of the paths"
    )

  @staticmethod
  def _check(path: str, rows) -> None:
    columns = set(rows[0]) if rows else set()
    if not {"path", "label"} <= columns:
      raise UserError(
        f"the CSV file {path!r} has the columns"
        f" {sorted(filter(None, columns))} in {len(rows)} lines; expected path"
        " and label, named in the first line."
      )
    for number, row in enumerate(rows, 2):
      if not row["path"] or not row["label"] or None in row:
        raise UserError(
          f"line {number} of {path!r} is {list(row.values())}; expected a path"
          " and a label."
        )

  read = FolderCatalog.read


def _check_images(directory: str) -> None:
  if not tf.io.gfile.isdir(os.path.expanduser(directory)):
    raise UserError(
      f"the folder {directory!r} does not exist; bind IMAGES to the folder of"
      " the images."
    )


def _plain(label: str) -> str:
  return str(int(label)) if label.strip().isdecimal() else label


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
  names = set(map(_plain, labels))
  if not all(name.isdecimal() for name in names):
    return tuple(sorted(names))
  largest = max(map(int, names))
  if largest >= _MAX_CLASSES:
    raise UserError(
      f"the column label goes up to {largest:,}, which is no class number"
      f" below {_MAX_CLASSES:,}; count classes from 0 or give them names."
    )
  return tuple(str(i) for i in range(largest + 1))


class TfdsCatalog(_Light):
  """A data set that TFDS has prepared, as the files of one of its versions.

  Args:
    directory: such as ~/tensorflow_datasets/cifar10/3.0.2.
  """

  def __init__(self, *, directory: str):
    import tensorflow_datasets as tfds  # seconds to import, and rarely needed

    self.directory = os.path.expanduser(directory)
    info = tfds.builder_from_directory(self.directory).info
    self.rule = f"TFDS {info.full_name}"
    self._indexes = {
      split: read_index(self.directory, split) for split in info.splits
    }
    self.class_names = next(iter(self._indexes.values())).class_names
    self.splits = {
      split: [
        (split, file, offset, length)
        for file in index.files
        for offset, length in record_spans(file)
      ]
      for split, index in self._indexes.items()
    }
    self.key = digest(repr(self.splits))

  def read(self, reference) -> Record:
    """Returns the record of (split, file, offset, length)."""
    split, file, offset, length = reference
    with tf.io.gfile.GFile(file, "rb") as stream:
      stream.seek(offset)
      example = tf.train.Example.FromString(stream.read(length))
    fields = self._indexes[split].fields
    features = example.features.feature
    label = features[fields.label].int64_list.value[0]
    names = features[fields.name].bytes_list.value
    return Record(
      features[fields.image].bytes_list.value[0],
      label,
      self.class_names[label],
      names[0].decode() if names else f"{os.path.basename(file)}@{offset}",
      "",
    )


class DigitsCatalog:
  """The handwritten digits of scikit-learn; see `sources.Digits`.

  Args:
    image_size: pixels of a side.
  """

  class_names = tuple("0123456789")
  rule = "one in five held out"

  def __init__(self, *, image_size: int):
    self.key = f"digits-{image_size}"
    self._image_size = image_size

  @functools.cached_property
  def splits(self) -> dict[str, list[Record]]:
    """The records themselves, as references."""
    return Digits(directory="", image_size=self._image_size).splits()

  def read(self, reference) -> Record:
    """Returns the record."""
    return reference
