"""What a folder of class folders holds: its classes and a fixed split.

`DIRECTORY/CLASS/*.jpg` is split by the names of the files, so that the same
folder is always split in the same way; `DIRECTORY/train/CLASS/*.jpg` beside
`test`, `val`, `valid`, `validation` or `heldout` is split already.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Mapping

import tensorflow as tf

from nfnets_tf.errors import UserError

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
FORMATS = {
  ".jpg": "jpeg",
  ".jpeg": "jpeg",
  ".png": "png",
  ".gif": "gif",
  ".bmp": "bmp",
}


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a folder of class folders holds.

  Attributes:
    directory: the folder.
    class_names: sorted; a label is a position in it.
    splits: (path below the folder, label) of every image of "train" and
      "heldout".
    key: SHA-256 of the splits and of every image's size and time of change.
    rule: how the splits came about.
  """

  directory: str
  class_names: tuple[str, ...]
  splits: Mapping[str, tuple[tuple[str, int], ...]]
  key: str
  rule: str = ""


@functools.lru_cache(maxsize=8)
def list_folder(directory: str | None, heldout_share: float) -> Listing:
  """Finds classes and images and splits them.

  Args:
    directory: the folder; "~" is the home folder.
    heldout_share: share of every class that is held out, in (0, 1), if the
      folder is not split already; at least one image of a class with two.

  Raises:
    UserError: if the folder is no folder of class folders with images.
  """
  directory = os.path.expanduser(directory or "")
  check_share(heldout_share)
  if not tf.io.gfile.isdir(directory):
    raise UserError(
      f"the folder {directory!r} does not exist; bind DATA_DIR to a folder that"
      " holds one folder of images for every class."
      if directory
      else "DATA_DIR is not given; bind it to a folder that holds one folder of"
      " images for every class."
    )
  return _find_splits(directory, heldout_share)


def _find_splits(directory: str, share: float) -> Listing:
  subfolders = _subfolders(directory)
  # A class may be called "train": then it holds images, not folders.
  trains = [
    name
    for name in subfolders
    if name.lower() in TRAIN_NAMES and _subfolders(f"{directory}/{name}")
  ]
  if not trains:
    return _split(directory, "", share)
  heldout = [name for name in subfolders if name.lower() in HELDOUT_NAMES]
  if len(trains) > 1 or len(heldout) > 1:
    several = trains if len(trains) > 1 else heldout
    raise UserError(
      f"{directory!r} has {' and '.join(map(repr, several))}, of which one can"
      " be used; keep the other elsewhere."
    )
  if others := sorted({*subfolders} - {*trains, *heldout}):
    LOGGER.warning(
      "Left out %s, which %s neither training nor held-out images.",
      ", ".join(os.path.join(directory, name) for name in others),
      "is" if len(others) == 1 else "are",
    )
  if heldout:
    return _listing_of_split_folder(directory, trains[0], heldout[0])
  return _split(directory, trains[0], share)


def _split(directory: str, root: str, share: float) -> Listing:
  found = _images_by_class(directory, root)
  splits = {"train": [], "heldout": []}
  for label, paths in enumerate(found.values()):
    count = max(1, round(share * len(paths))) if len(paths) > 1 else 0
    heldout = set(sorted(paths, key=digest)[:count])
    for path in paths:
      name = "heldout" if path in heldout else "train"
      splits[name].append((path, label))
  rule = f"{share:g} of every class held out by the SHA-256 of the paths"
  return _listing(directory, found, splits, rule)


def _listing_of_split_folder(
  directory: str, training: str, heldout: str
) -> Listing:
  train = _images_by_class(directory, training)
  rest = _images_by_class(directory, heldout, at_least=1)
  if unknown := [name for name in rest if name not in train]:
    raise UserError(
      f"{os.path.join(directory, heldout)!r} has the class"
      f" {unknown[0]!r}, which {training!r} has not; both need the same class"
      " folders."
    )
  labels = {name: label for label, name in enumerate(train)}
  splits = {
    split: [
      (path, labels[name]) for name, paths in found.items() for path in paths
    ]
    for split, found in (("train", train), ("heldout", rest))
  }
  return _listing(directory, train, splits, f"{training}/ and {heldout}/")


def _listing(directory: str, class_names, splits, rule: str) -> Listing:
  lines = [
    f"{split} {label} {describe_file(directory, path)}"
    for split, images in splits.items()
    for path, label in images
  ]
  return Listing(
    directory,
    tuple(class_names),
    {split: tuple(images) for split, images in splits.items()},
    digest("\n".join(lines)),
    rule,
  )


def describe_file(directory: str, path: str) -> str:
  """Returns a file's path, size and time of change."""
  try:
    found = tf.io.gfile.stat(os.path.join(directory, path))
  except tf.errors.NotFoundError:  # a link to nowhere
    return f"{path} is missing"
  return f"{path} {found.length} {found.mtime_nsec}"


def _images_by_class(directory: str, root: str, at_least: int = 2):
  """Returns {class: paths below `directory`} of the class folders of `root`."""
  base, found, others = os.path.join(directory, root), {}, []
  for name in _subfolders(base):
    found[name] = []
    for folder, _, files in tf.io.gfile.walk(os.path.join(base, name)):
      for file in sorted(files):
        path = os.path.relpath(os.path.join(folder, file), directory)
        known = os.path.splitext(file)[1].lower() in FORMATS
        if not file.startswith("."):
          (found[name] if known else others).append(path)
  if others:
    LOGGER.warning(
      "Left out %d files of %s that are no %s, such as %s.",
      len(others),
      base,
      ", ".join(FORMATS),
      others[0],
    )
  if len(found) < at_least:
    raise UserError(
      f"{base!r} has {len(found)} class folders; expected at least {at_least},"
      " each with the images of one class."
    )
  if empty := [name for name, paths in found.items() if not paths]:
    raise UserError(
      f"the class folder {os.path.join(base, empty[0])!r} holds no images"
      f" ({', '.join(FORMATS)}); add some or remove the folder."
    )
  return found


def _subfolders(directory: str) -> list[str]:
  names = (name.rstrip("/") for name in tf.io.gfile.listdir(directory))
  return sorted(
    name
    for name in names
    if not name.startswith(".")
    and tf.io.gfile.isdir(os.path.join(directory, name))
  )


def check_share(heldout_share: float) -> None:
  """Raises a UserError unless a share is in (0, 1)."""
  if not 0 < heldout_share < 1:
    raise UserError(
      f"HELDOUT_SHARE = {heldout_share} cannot be used; bind it to a share of"
      " the images between 0 and 1, such as 0.1."
    )


def is_held_out(name: str, share: float) -> bool:
  """Returns whether a name is among a share of all names, the same for good."""
  return int(digest(name)[:13], 16) < share * 16**13


def digest(text: str) -> str:
  """Returns the SHA-256 of a text, in hexadecimal digits."""
  return hashlib.sha256(text.encode()).hexdigest()


def count_classes(*, directory: str, heldout_share: float) -> int:
  """Returns the number of class folders."""
  return len(list_folder(directory, heldout_share).class_names)


def count_training_images(*, directory: str, heldout_share: float) -> int:
  """Returns the number of images that are trained on."""
  return len(list_folder(directory, heldout_share).splits["train"])
