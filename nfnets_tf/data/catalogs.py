"""What shards are made of: images that are listed but not yet read.

A catalog has `class_names`, `rule` (how its splits came about), `key` (changes
with what it lists), `splits` {name: references to its images} and `read`, which
makes a `Record` of a reference wherever the work is done.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.listing import describe_file, digest, list_folder
from nfnets_tf.data.sources import Digits, read_image
from nfnets_tf.data.tables import read_table
from nfnets_tf.data.tfrecords import Record, record_spans
from nfnets_tf.errors import UserError


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
    self.rule = listing.rule

  def read(self, reference) -> Record:
    """Returns the record of (path, label)."""
    path, label = reference
    return read_image(self.directory, path, label, self.class_names[label])


class CsvCatalog(_Light):
  """A CSV file with the columns path, label and perhaps split.

  Args:
    path: of the CSV file; see `tables.read_table`.
    directory: that the images' paths are relative to.
    heldout_share: of the images that is held out, by the SHA-256 of their
      paths, if there is no column split.

  Raises:
    UserError: if the folder is not there or the file cannot be used.
  """

  def __init__(self, *, path: str, directory: str, heldout_share: float):
    _check_images(directory)
    self.directory = os.path.expanduser(directory)
    self.class_names, self.splits, self.rule = read_table(path, heldout_share)
    images = [path for part in self.splits.values() for path, _ in part]
    state = [describe_file(self.directory, path) for path in images]
    self.key = digest(repr((self.splits, self.class_names, state)))

  read = FolderCatalog.read


def _check_images(directory: str) -> None:
  if not tf.io.gfile.isdir(os.path.expanduser(directory)):
    raise UserError(
      f"{directory!r} is no folder; bind IMAGES to the folder of the images."
    )


class TfdsCatalog(_Light):
  """A data set that TFDS has prepared, as the files of one of its versions.

  Args:
    directory: such as ~/tensorflow_datasets/cifar10/3.0.2.
  """

  def __init__(self, *, directory: str):
    import tensorflow_datasets as tfds  # seconds to import, and rarely needed

    self.directory = os.path.expanduser(directory)
    try:
      info = tfds.builder_from_directory(self.directory).info
    except (FileNotFoundError, tf.errors.NotFoundError) as error:
      raise UserError(
        f"TFDS has prepared no data set in {directory!r}; bind TFDS to the"
        " folder of a version, such as ~/tensorflow_datasets/cifar10/3.0.2."
      ) from error
    self.rule = f"TFDS {info.full_name}"
    self._indexes = {
      split: read_split_info(self.directory, split) for split in info.splits
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
    label = next(iter(features[fields.label].int64_list.value), -1)
    known = 0 <= label < len(self.class_names)
    names = features[fields.name].bytes_list.value
    return Record(
      features[fields.image].bytes_list.value[0],
      label,
      self.class_names[label] if known else "",
      names[0].decode(errors="replace")
      if names
      else f"{os.path.basename(file)}@{offset}",
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
