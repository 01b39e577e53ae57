"""A folder of class folders as a source of examples.

`DIRECTORY/CLASS/*.jpg` is split by the names of the files, so that the same
folder is always split in the same way; `DIRECTORY/train/CLASS/*.jpg` next to
`test`, `val`, `valid`, `validation` or `heldout` is split already.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from nfnets_tf.data.tfrecords import Record
from nfnets_tf.errors import UserError
from nfnets_tf.ranges import accepts, number

LOGGER = logging.getLogger("nfnets_tf")

TRAIN_NAMES = ("train", "training")
HELDOUT_NAMES = (
  "heldout",
  "test",
  "testing",
  "val",
  "valid",
  "validation",
  "eval",
  "evaluation",
  "dev",
)
_FORMATS = {
  ".jpg": "jpeg",
  ".jpeg": "jpeg",
  ".png": "png",
  ".gif": "gif",
  ".bmp": "bmp",
}


@accepts(heldout_fraction=number(above=0, below=1))
class ImageFiles:
  """Base of sources of image files; a reference is (path, label).

  Args:
    directory: that the paths are relative to; "~" is the home folder.
    heldout_fraction: fraction that is held out if there is no split, in (0, 1).

  Raises:
    UserError: if the directory does not exist or the fraction is out of range.
  """

  class_names: tuple[str, ...]
  splits: Mapping[str, Sequence[tuple[str, int]]]

  def __init__(self, directory: str | None, heldout_fraction: float):
    self.directory = os.path.expanduser(directory or "")
    if not tf.io.gfile.isdir(self.directory):
      raise UserError(
        f"the image folder {directory!r} does not exist; bind DATA_DIR of a"
        " run, or IMAGES of a job that prepares shards, to a folder with one"
        " folder of images for every class."
      )

  def read(self, reference: tuple[str, int]) -> Record:
    """Reads an image file as it is; see `ExampleSource.read`."""
    path, label = reference
    with tf.io.gfile.GFile(os.path.join(self.directory, path), "rb") as file:
      encoded = file.read()
    kind = _FORMATS.get(os.path.splitext(path)[1].lower(), "")
    return Record(encoded, label, self.class_names[label], path, kind)

  def __getstate__(self):
    # Workers are sent the references that they read, not the whole list.
    return {**vars(self), "splits": {}}


class ImageFolder(ImageFiles):
  """A folder of class folders, split already or by the names of the files.

  The folder is listed once per process. See `ExampleSource` for the attributes.

  Args:
    directory: the folder; "~" is the home folder.
    heldout_fraction: fraction of every class that is held out, in (0, 1), if
      the folder is not split already; at least one image of a class with two.

  Raises:
    UserError: if it is not a folder of class folders with images.
  """

  def __init__(self, *, directory: str | None, heldout_fraction: float):
    super().__init__(directory, heldout_fraction)
    self.class_names, self.splits, self.split_rule, self.key = _list_folder(
      self.directory, heldout_fraction
    )


@functools.lru_cache(maxsize=8)
def _list_folder(directory: str, fraction: float):
  """Returns (class names, splits, how they were made, key)."""
  training, holding_out = _find_splits(directory)
  train = _images_by_class(directory, training)
  if holding_out:
    heldout = _images_by_class(directory, holding_out, at_least=1)
    if unknown := [name for name in heldout if name not in train]:
      raise UserError(
        f"{os.path.join(directory, holding_out)!r} has the class"
        f" {unknown[0]!r}, but {training!r} does not; both need the same class"
        " folders."
      )
    rule = f"{training}/ and {holding_out}/"
  else:
    train, heldout = _hold_out(train, fraction)
    rule = f"{fraction:g} of every class held out by the SHA-256 of the paths"
  labels = {name: label for label, name in enumerate(train)}
  splits = {
    split: [(path, labels[name]) for name in part for path in part[name]]
    for split, part in (("train", train), ("heldout", heldout))
  }
  lines = [
    f"{split} {label} {describe_file(directory, path)}"
    for split, images in splits.items()
    for path, label in images
  ]
  return tuple(train), splits, rule, digest("\n".join(lines))


def _find_splits(directory: str) -> tuple[str, str]:
  """Returns the subfolders of training and held-out images, or ""."""
  subfolders = _subfolders(directory)
  # A class may be called "train": then it holds images, not folders.
  trains = [
    name
    for name in subfolders
    if name.lower() in TRAIN_NAMES and _subfolders(f"{directory}/{name}")
  ]
  if not trains:
    return "", ""
  heldouts = [name for name in subfolders if name.lower() in HELDOUT_NAMES]
  for names in (trains, heldouts):
    if len(names) > 1:
      raise UserError(
        f"{directory!r} has {' and '.join(map(repr, names))}; expected one such"
        " folder: move the other one elsewhere."
      )
  if ignored := set(subfolders) - {*trains, *heldouts}:
    LOGGER.warning(
      "Ignored %s: neither training nor held-out images.",
      ", ".join(os.path.join(directory, name) for name in sorted(ignored)),
    )
  return trains[0], "".join(heldouts)


def _hold_out(classes: Mapping[str, Sequence[str]], fraction: float):
  """Returns the remaining and the held-out paths of every class."""
  train, heldout = {}, {}
  for name, paths in classes.items():
    count = max(1, round(fraction * len(paths))) if len(paths) > 1 else 0
    chosen = set(sorted(paths, key=digest)[:count])
    train[name] = [path for path in paths if path not in chosen]
    heldout[name] = [path for path in paths if path in chosen]
  return train, heldout


def _images_by_class(directory: str, root: str, at_least: int = 2):
  """Returns {class: paths below `directory`} of the class folders of `root`."""
  base, classes, ignored = os.path.join(directory, root), {}, []
  for name in _subfolders(base):
    classes[name] = []
    for folder, _, files in tf.io.gfile.walk(os.path.join(base, name)):
      for file in sorted(files):
        path = os.path.relpath(os.path.join(folder, file), directory)
        known = os.path.splitext(file)[1].lower() in _FORMATS
        if not file.startswith("."):
          (classes[name] if known else ignored).append(path)
  if ignored:
    LOGGER.warning(
      "Ignored %d files of %s that are not %s, such as %s.",
      len(ignored),
      base,
      ", ".join(_FORMATS),
      ignored[0],
    )
  if len(classes) < at_least:
    raise UserError(
      f"{base!r} has {len(classes)} class folders; expected at least"
      f" {at_least}, each with the images of one class."
    )
  if empty := [name for name, paths in classes.items() if not paths]:
    raise UserError(
      f"the class folder {os.path.join(base, empty[0])!r} holds no images"
      f" ({', '.join(_FORMATS)}); add some or remove the folder."
    )
  return classes


def _subfolders(directory: str) -> list[str]:
  names = (name.rstrip("/") for name in tf.io.gfile.listdir(directory))
  return sorted(
    name
    for name in names
    if not name.startswith(".")
    and tf.io.gfile.isdir(os.path.join(directory, name))
  )


def describe_file(directory: str, path: str) -> str:
  """Returns a file's path, size in bytes and modification time in ns."""
  try:
    stat = tf.io.gfile.stat(os.path.join(directory, path))
  except tf.errors.NotFoundError:  # a broken link: reported when it is read
    return f"{path} is missing"
  return f"{path} {stat.length} {stat.mtime_nsec}"


def digest(text: str) -> str:
  """Returns the SHA-256 of a text, in hexadecimal digits."""
  return hashlib.sha256(text.encode()).hexdigest()
