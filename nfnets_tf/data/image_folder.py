"""A folder of class folders as a source of examples.

`DIRECTORY/CLASS/*.jpg` is split by the names of the files, so that the same
folder is always split in the same way; `DIRECTORY/train/CLASS/*.jpg` next to
`test`, `val`, `valid`, `validation` or `heldout` is split already. Where there
are two, the images of val are held out, and those of test left alone.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from nfnets_tf.data.file_listing import (
  REPEATED,
  ListedFile,
  Listing,
  describe_file,
  find_repeated,
  is_readable_file,
  printable,
)
from nfnets_tf.data.tfrecords import Record
from nfnets_tf.errors import UserError
from nfnets_tf.ranges import PATH, accepts, number, optional

TRAIN_NAMES = ("train", "training")
_VALIDATION_NAMES = (
  "heldout",
  "val",
  "valid",
  "validation",
  "eval",
  "evaluation",
  "dev",
)
HELDOUT_NAMES = (*_VALIDATION_NAMES, "test", "testing")
NO_PART = "neither training nor held-out images"
_FORMATS = {
  ".jpg": "jpeg",
  ".jpeg": "jpeg",
  ".jpe": "jpeg",
  ".jfif": "jpeg",
  ".png": "png",
  ".gif": "gif",
  ".bmp": "bmp",
}


@accepts(directory=optional(PATH), heldout_fraction=number(above=0, below=1))
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
    full, name = os.path.join(self.directory, path), printable(path)
    if not is_readable_file(full):
      raise OSError(f"{printable(full)} is not a file")
    # TensorFlow opens no path that is not UTF-8.
    reader = tf.io.gfile.GFile if name == path else open
    with reader(full, "rb") as file:
      encoded = file.read()
    kind = _FORMATS.get(os.path.splitext(path)[1].lower(), "")
    return Record(encoded, label, self.class_names[label], name, kind)

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
  listing = Listing(directory)
  training, holding_out = _find_splits(listing)
  files = {"train": _images_by_class(listing, training)}
  if holding_out:
    files["heldout"] = _images_by_class(listing, holding_out, at_least=1)
  parts = _drop_repeated(listing, files)
  listing.report()
  train, heldout = parts["train"], parts.get("heldout", {})
  if holding_out:
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


def _find_splits(listing: Listing) -> tuple[str, str]:
  """Returns the subfolders of training and held-out images, or ""."""
  subfolders = listing.subfolders("")
  # A class may be called "train": then it holds images, not folders.
  trains = [
    name
    for name in subfolders
    if name.lower() in TRAIN_NAMES and listing.subfolders(name)
  ]
  if not trains:
    _check_no_other_split(listing, subfolders)
    return "", ""
  heldouts = choose_heldout(subfolders)
  for names in (trains, heldouts):
    if len(names) > 1:
      raise UserError(
        f"{listing.directory!r} has {' and '.join(map(repr, names))}; expected"
        " one such folder: move the other one elsewhere."
      )
  used = {*trains, *heldouts}
  for name in subfolders:
    if name not in used:
      listing.ignore(NO_PART, name)
  return trains[0], "".join(heldouts)


def choose_heldout(names: Iterable[str]) -> list[str]:
  """Returns the names of parts that are held out.

  Where some images are for validation, those for tests are not among them: a
  run is chosen by its held-out images.

  Args:
    names: of all parts of a dataset.
  """
  heldout = [name for name in names if name.lower() in HELDOUT_NAMES]
  validation = [name for name in heldout if name.lower() in _VALIDATION_NAMES]
  return validation or heldout


def _check_no_other_split(listing: Listing, subfolders: Sequence[str]) -> None:
  """Raises a UserError if the parts of a split would be taken for classes."""
  train, heldout = "|".join(TRAIN_NAMES), "|".join(HELDOUT_NAMES)
  pattern = rf"(.*[-_ ])?(?:({train})|{heldout})([-_ ]?(set|data|images))?"
  found = {}  # {prefix: {name: whether it is training's}}
  for name in subfolders:
    match = re.fullmatch(pattern, name.lower())
    if match and listing.subfolders(name):
      found.setdefault(match[1], {})[name] = bool(match[2])
  for prefix, parts in found.items():
    # With a prefix only both are a split, as seg_train and seg_test.
    alone = len(parts) > 1 or [*parts] == subfolders
    if len({*parts.values()}) > 1 or (prefix is None and alone):
      raise UserError(
        f"{listing.directory!r} has {' and '.join(map(repr, parts))}, which"
        " hold folders and look like a split, but no folder 'train'; rename the"
        " one of the training images to 'train' and that of the held-out ones,"
        " if any, to 'test'."
      )


def _hold_out(classes: Mapping[str, Sequence[str]], fraction: float):
  """Returns the remaining and the held-out paths of every class."""
  train, heldout = {}, {}
  for name, paths in classes.items():
    count = max(1, round(fraction * len(paths))) if len(paths) > 1 else 0
    chosen = set(sorted(paths, key=digest)[:count])
    train[name] = [path for path in paths if path not in chosen]
    heldout[name] = [path for path in paths if path in chosen]
  return train, heldout


def _images_by_class(
  listing: Listing, root: str, at_least: int = 2
) -> dict[str, list[ListedFile]]:
  """Returns {class: its images} of the class folders in a folder."""
  base, classes = os.path.join(listing.directory, root), {}
  formats = ", ".join(_FORMATS)
  for path in listing.loose_files(root):
    listing.ignore("not in the folder of a class", path)
  for name in listing.subfolders(root):
    files = listing.files(os.path.join(root, name))
    classes[name] = []
    for file in files:
      if os.path.splitext(file.path)[1].lower() in _FORMATS:
        classes[name].append(file)
      else:
        listing.ignore(f"not {formats}", file.path)
  if len(classes) < at_least:
    raise UserError(
      f"{base!r} has {len(classes)} class folders; expected at least"
      f" {at_least}, each with the images of one class."
    )
  if empty := [name for name, files in classes.items() if not files]:
    raise UserError(
      f"the class folder {os.path.join(base, empty[0])!r} holds no images"
      f" ({formats}); add some or remove the folder."
    )
  return classes


def _drop_repeated(
  listing: Listing, splits: Mapping[str, Mapping[str, Sequence[ListedFile]]]
) -> dict[str, dict[str, list[str]]]:
  """Returns the paths of every split and class, each file once.

  Raises:
    UserError: if two classes or splits have a file in common.
  """
  places = {
    file.path: (split, name)
    for split, classes in splits.items()
    for name, files in classes.items()
    for file in files
  }
  files = [
    f for classes in splits.values() for fs in classes.values() for f in fs
  ]
  repeated = find_repeated(listing.directory, files)
  for path, first in repeated.items():
    check_same_place(listing.directory, path, first, places)
    listing.ignore(REPEATED, path, first)
  return {
    split: {
      name: [file.path for file in files if file.path not in repeated]
      for name, files in classes.items()
    }
    for split, classes in splits.items()
  }


def check_same_place(directory, path: str, first: str, places: Mapping) -> None:
  """Raises a UserError unless two paths of a file have one split and class.

  Args:
    directory: of the paths, for the message.
    path: of the file.
    first: another path of it.
    places: {path: (split, class)}.
  """
  (split, name), (other_split, other_name) = places[path], places[first]
  if name != other_name:
    state = f"of the classes {other_name!r} and {name!r}"
  elif split != other_split:
    state = "trained on and held out"
  else:
    return
  raise UserError(
    f"{printable(first)!r} and {printable(path)!r} in {directory!r} are the"
    f" same file, {state}; remove one of the two."
  )


def digest(text: str) -> str:
  """Returns the SHA-256 of a text, in hexadecimal digits."""
  return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
