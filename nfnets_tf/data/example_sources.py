"""Sources of labeled images that shards are written from.

A new source is a class with the attributes of `ExampleSource`, bound as
`shard_builder.ShardBuilder.source` by a gin file.
"""

from __future__ import annotations

import collections
import csv
import functools
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.file_listing import (
  HIDDEN,
  REPEATED,
  ListedFile,
  Listing,
  describe_file,
  find_repeated,
  is_of_a_tool,
)
from nfnets_tf.data.image_folder import (
  HELDOUT_NAMES,
  NO_PART,
  TRAIN_NAMES,
  ImageFiles,
  check_same_place,
  choose_heldout,
  digest,
)
from nfnets_tf.data.shard_scan import MAX_CLASSES
from nfnets_tf.data.tfrecords import Record, read_features, record_spans
from nfnets_tf.errors import UserError
from nfnets_tf.ranges import MAX_SIDE, PATH, accepts, integer

LOGGER = logging.getLogger("nfnets_tf")

_MAX_NAME = 200  # bytes of a folder's name in that of its shards


class ExampleSource(Protocol):
  """A list of labeled images that are read one by one, by any process.

  Attributes:
    class_names: name of every label.
    splits: {split: references to its images, such as paths}.
    split_rule: description of how the splits were made.
    key: changes whenever an image, its label or its split does.
  """

  class_names: Sequence[str]
  splits: Mapping[str, Sequence[Any]]
  split_rule: str
  key: str

  def read(self, reference) -> Record:
    """Reads the image of one reference out of `splits`.

    Raises:
      OSError, tf.errors.OpError: if it cannot be read.
    """


def count_classes(*, source: ExampleSource) -> int:
  """Returns the number of classes of a source."""
  return len(source.class_names)


def count_examples(*, source: ExampleSource, split: str) -> int:
  """Returns the number of images of a source's split."""
  return len(source.splits[split])


def cache_directory(*, source: ImageFiles, cache: str) -> str:
  """Returns the directory below `cache` for the shards of image files.

  Its name follows from the source's key, so that changed images get new shards
  and older shards stay valid for the runs that use them.
  """
  name = os.path.basename(os.path.abspath(source.directory))
  # File systems have names of up to 255 bytes.
  name = name.encode(errors="replace")[:_MAX_NAME].decode(errors="ignore")
  return os.path.join(os.path.expanduser(cache), f"{name}-{source.key[:12]}")


@accepts(path=PATH)
class CsvTable(ImageFiles):
  """Image files listed in a CSV file: columns path, label and perhaps split.

  Classes are the different labels, sorted: as numbers if all are integers,
  which then must count from 0, with gaps for classes without images. The column
  split holds train and one of `image_folder.HELDOUT_NAMES`.

  Args:
    path: of the CSV file, in UTF-8, with a line of column names.
    directory: that the paths of the images are relative to.
    heldout_fraction: fraction of the images that is held out, by the SHA-256 of
      their paths, if there is no column split; in (0, 1).

  Raises:
    UserError: if the directory or the file is missing, or a line is invalid.
  """

  def __init__(self, *, path: str, directory: str, heldout_fraction: float):
    super().__init__(directory, heldout_fraction)
    columns, rows = _read_rows(os.path.expanduser(path))
    listing = Listing(self.directory)
    rows = _drop_repeated(listing, _drop_tests(listing, rows))
    listing.report()
    self.class_names = _class_names([row["label"] for row in rows])
    labels = {name: label for label, name in enumerate(self.class_names)}
    heldout = _held_out_paths(columns, rows, heldout_fraction)
    self.splits = {}
    for row in rows:
      split = "heldout" if row["path"] in heldout else "train"
      reference = row["path"], labels[_canonical(row["label"])]
      self.splits.setdefault(split, []).append(reference)
    used = {label for part in self.splits.values() for _, label in part}
    if empty := [x for i, x in enumerate(self.class_names) if i not in used]:
      LOGGER.warning(
        "%d of the %d classes of %r have no image, such as %r; if the classes"
        " are counted from 1, number them from 0 or give them names.",
        len(empty),
        len(self.class_names),
        path,
        empty[0],
      )
    self.split_rule = (
      "the column split"
      if "split" in columns
      else f"{heldout_fraction:g} held out by the SHA-256 of the paths"
    )
    images = [path for part in self.splits.values() for path, _ in part]
    state = [describe_file(self.directory, path) for path in images]
    self.key = digest(repr((self.splits, self.class_names, state)))


def _read_rows(path: str) -> tuple[Sequence[str], list[dict]]:
  if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
    raise UserError(
      f"the CSV file {path!r} does not exist; bind CSV to a file with the"
      " columns path and label."
    )
  with tf.io.gfile.GFile(path, "rb") as file:
    # Spreadsheets put a byte order mark before the first name.
    text = file.read().decode("utf-8-sig", errors="replace")
  reader = csv.DictReader(io.StringIO(text, newline=""))
  columns, rows, first_rows = reader.fieldnames or (), [], {}
  if {"path", "label"} <= set(columns):
    for row in reader:
      if not row["path"] or not row["label"] or None in row:
        raise UserError(
          f"line {reader.line_num} of {path!r} is {list(row.values())};"
          " expected a path and a label."
        )
      if first_rows.setdefault(row["path"], row) != row:
        raise UserError(
          f"line {reader.line_num} of {path!r} gives {row['path']!r} another"
          " label or split than a line before; remove one of them."
        )
      rows.append(row)
  if not rows:
    raise UserError(
      f"the CSV file {path!r} has no images below the column names"
      f" {list(columns)}; expected path and label among the names, separated by"
      " commas, and a line for every image."
    )
  return columns, rows


def _drop_tests(listing: Listing, rows: Sequence[dict]) -> list[dict]:
  """Returns the rows without those for tests, if others are for validation."""
  names = {row.get("split") or "" for row in rows}
  if not any(name.lower() in TRAIN_NAMES for name in names):
    return list(rows)  # refused later
  left = {x for x in names if x.lower() in HELDOUT_NAMES}
  left -= set(choose_heldout(names))
  for row in rows:
    if row.get("split") in left:
      listing.ignore(NO_PART, row["path"])
  return [row for row in rows if row.get("split") not in left]


def _drop_repeated(listing: Listing, rows: Sequence[dict]) -> list[dict]:
  """Returns the rows of images, each file once.

  Raises:
    UserError: if a file has two labels or splits.
  """
  first_rows = {}
  for row in rows:
    path = row["path"]
    if is_of_a_tool(path):
      listing.ignore(HIDDEN, path)
    elif path in first_rows:
      listing.ignore(REPEATED, path, path)
    else:
      first_rows[path] = row
  places = {
    path: ((row.get("split") or "").lower(), _canonical(row["label"]))
    for path, row in first_rows.items()
  }
  files = [ListedFile(path, by_link=False) for path in first_rows]
  repeated = find_repeated(listing.directory, files)
  for path, first in repeated.items():
    check_same_place(listing.directory, path, first, places)
    listing.ignore(REPEATED, path, first)
  if not first_rows:
    raise UserError(
      f"all paths of the CSV file are {HIDDEN}, such as {rows[0]['path']!r};"
      " list the paths of images."
    )
  return [row for path, row in first_rows.items() if path not in repeated]


def _held_out_paths(columns, rows, fraction: float) -> set[str]:
  if "split" not in columns:
    paths = sorted({row["path"] for row in rows}, key=digest)
    # A fixed fraction of all possible paths.
    heldout = {x for x in paths if int(digest(x)[:13], 16) < fraction * 16**13}
    # At least one on each side, as in a folder.
    return (heldout or set(paths[:1])) - set(paths[-1:])
  names = {row["split"] or "" for row in rows}
  heldout_names = {x for x in names if x.lower() in HELDOUT_NAMES}
  unknown = {x for x in names - heldout_names if x.lower() not in TRAIN_NAMES}
  if len(heldout_names) > 1 or unknown:
    raise UserError(
      f"the column split holds {', '.join(map(repr, sorted(names)))}; expected"
      f" train and one of {', '.join(HELDOUT_NAMES)}, in every line."
    )
  return {row["path"] for row in rows if row["split"] in heldout_names}


def _canonical(label: str) -> str:
  # Class numbers may have leading zeros.
  return str(int(label)) if label.strip().isdecimal() else label


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
  names = set(map(_canonical, labels))
  if words := [name for name in names if not name.isdecimal()]:
    number = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*")
    if all(map(number.fullmatch, names)):
      raise UserError(
        f"the column label holds {min(words)!r}, which is not a class number;"
        " number the classes 0, 1, 2, ... or give them names."
      )
    return tuple(sorted(names))
  largest = max(map(int, names))
  if largest >= MAX_CLASSES:
    raise UserError(
      f"the column label goes up to {largest:,}; expected class numbers below"
      f" {MAX_CLASSES:,}: number the classes from 0 or give them names."
    )
  return tuple(str(i) for i in range(largest + 1))


class TfdsDataset:
  """A dataset that TFDS has prepared, with its splits and classes.

  Args:
    directory: of one of its versions, such as
      ~/tensorflow_datasets/cifar10/3.0.2.

  Raises:
    UserError: if TFDS has not prepared a dataset there.
  """

  def __init__(self, *, directory: str):
    import tensorflow_datasets as tfds  # seconds to import, and rarely needed

    path = os.path.expanduser(directory)
    if not tf.io.gfile.exists(os.path.join(path, "dataset_info.json")):
      raise UserError(
        f"TFDS has not prepared a dataset in {directory!r}; bind TFDS to the"
        " folder of a version, such as ~/tensorflow_datasets/cifar10/3.0.2."
      )
    info = tfds.builder_from_directory(path).info
    self.split_rule = f"TFDS {info.full_name}"
    self._infos = {split: read_split_info(path, split) for split in info.splits}
    self.class_names = next(iter(self._infos.values())).class_names
    self.splits = {
      split: [
        (split, file, offset, length)
        for file in split_info.files
        for offset, length in record_spans(file)
      ]
      for split, split_info in self._infos.items()
    }
    self.key = digest(repr(self.splits))

  def __getstate__(self):
    return {**vars(self), "splits": {}}

  def read(self, reference: tuple[str, str, int, int]) -> Record:
    """Reads the record (split, file, offset, length)."""
    split, file, offset, length = reference
    with tf.io.gfile.GFile(file, "rb") as stream:
      stream.seek(offset)
      serialized = stream.read(length)
    values = read_features(serialized, self._infos[split].fields)
    label = values.labels[0] if values.labels else -1
    valid = 0 <= label < len(self.class_names)
    return Record(
      values.images[0] if values.images else b"",
      label,
      self.class_names[label] if valid else "",
      values.filename or f"{os.path.basename(file)}@{offset}",
      "",
    )


@accepts(image_size=integer(8, MAX_SIDE))
class Digits:
  """The 1,797 handwritten digits of scikit-learn, as PNGs.

  8x8 images are enlarged (bicubic); one in five is held out, in a fixed order:
  1,437 to train on and 360 held out. A reference is the record itself.

  Args:
    image_size: pixels of a side, at least 8.
  """

  class_names = tuple("0123456789")
  split_rule = "one in five held out"

  def __init__(self, *, image_size: int):
    self.key = f"digits-{image_size}"
    self._image_size = image_size

  @functools.cached_property
  def splits(self) -> dict[str, list[Record]]:
    """Records of "train" and "heldout"."""
    from sklearn import datasets  # a second to import, and needed once

    digits = datasets.load_digits()
    images = tf.cast(digits.images[..., None] * (255 / 16), tf.float32)
    images = tf.image.resize(images, [self._image_size] * 2, method="bicubic")
    images = tf.saturate_cast(tf.round(images), tf.uint8)
    splits = collections.defaultdict(list)
    order = np.random.RandomState(0).permutation(len(digits.target))
    for position, i in enumerate(order):
      label = int(digits.target[i])
      encoded = tf.io.encode_png(images[i]).numpy()
      record = Record(encoded, label, str(label), f"digit-{i:04d}.png", "png")
      splits["train" if position % 5 else "heldout"].append(record)
    return {split: splits[split] for split in ("train", "heldout")}

  def read(self, reference: Record) -> Record:
    """Returns the record."""
    return reference
