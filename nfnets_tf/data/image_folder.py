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
from nfnets_tf.errors import UserError, require

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


class ImageFiles:
  """Base of sources of image files; a reference is (path, label).

  Attributes:
    directory: that the paths are relative to.
    class_names: name of every label.
    splits: {split: (path, label) of every image}.
  """

  directory: str
  class_names: tuple[str, ...]
  splits: Mapping[str, Sequence[tuple[str, int]]]

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
    self.directory = find_directory(directory)
    check_heldout_fraction(heldout_fraction)
    self.class_names, self.splits, self.split_rule, self.key = _list_folder(
      self.directory, heldout_fraction
    )


def find_directory(directory: str | None) -> str:
  """Returns the directory of a source's images, with "~" expanded.

  Raises:
    UserError: if it does not exist.
  """
  path = os.path.expanduser(directory or "")
  if not tf.io.gfile.isdir(path):
    raise UserError(
      f"the image folder {directory!r} does not exist; bind DATA_DIR of a run,"
      " or IMAGES of a job that prepares shards, to a folder with one folder of"
      " images for every class."
    )
  return path


@functools.lru_cache(maxsize=8)
def _list_folder(directory: str, fraction: float):
  """Returns (class names, splits, how they were made, key)."""
  subfolders = _subfolders(directory)
  # A class may be called "train": then it holds images, not folders.
  trains = [
    name
    for name in subfolders
    if name.lower() in TRAIN_NAMES and _subfolders(f"{directory}/{name}")
  ]
  heldouts = [name for name in subfolders if name.lower() in HELDOUT_NAMES]
  if trains and (len(trains) > 1 or len(heldouts) > 1):
    several = trains if len(trains) > 1 else heldouts
    raise UserError(
      f"{directory!r} has {' and '.join(map(repr, several))}; expected one such"
      " folder: move the other one elsewhere."
    )
  if trains and (ignored := set(subfolders) - {*trains, *heldouts}):
    LOGGER.warning(
      "Ignored %s: neither training nor held-out images.",
      ", ".join(os.path.join(directory, name) for name in sorted(ignored)),
    )
  if trains and heldouts:
    names, splits = _read_splits(directory, trains[0], heldouts[0])
    rule = f"{trains[0]}/ and {heldouts[0]}/"
  else:
    names, splits = _make_splits(directory, "".join(trains), fraction)
    rule = f"{fraction:g} of every class held out by the SHA-256 of the paths"
  lines = [
    f"{split} {label} {describe_file(directory, path)}"
    for split, images in splits.items()
    for path, label in images
  ]
  return names, splits, rule, digest("\n".join(lines))


def _make_splits(directory: str, root: str, fraction: float):
  classes = _images_by_class(directory, root)
  splits = {"train": [], "heldout": []}
  for label, paths in enumerate(classes.values()):
    count = max(1, round(fraction * len(paths))) if len(paths) > 1 else 0
    heldout = set(sorted(paths, key=digest)[:count])
    for path in paths:
      splits["heldout" if path in heldout else "train"].append((path, label))
  return tuple(classes), splits


def _read_splits(directory: str, training: str, heldout: str):
  classes = _images_by_class(directory, training)
  labels = {name: label for label, name in enumerate(classes)}
  heldout_classes = _images_by_class(directory, heldout, at_least=1)
  if unknown := [name for name in heldout_classes if name not in labels]:
    raise UserError(
      f"{os.path.join(directory, heldout)!r} has the class {unknown[0]!r}, but"
      f" {training!r} does not; both need the same class folders."
    )
  splits = {
    split: [
      (path, labels[name]) for name, paths in some.items() for path in paths
    ]
    for split, some in (("train", classes), ("heldout", heldout_classes))
  }
  return tuple(classes), splits


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


def check_heldout_fraction(fraction: float) -> None:
  """Raises a UserError unless a fraction is in (0, 1)."""
  valid = 0 < fraction < 1
  require(valid, "HELDOUT_FRACTION", fraction, "a number between 0 and 1")


def is_held_out(name: str, fraction: float) -> bool:
  """Returns whether a name is in a fixed fraction of all names, in [0, 1]."""
  return int(digest(name)[:13], 16) < fraction * 16**13


def digest(text: str) -> str:
  """Returns the SHA-256 of a text, in hexadecimal digits."""
  return hashlib.sha256(text.encode()).hexdigest()
