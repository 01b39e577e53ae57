"""Where shards come from: images that are at hand, written once."""

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nfnets_tf.data.dataset_info import INDEX, write_dataset
from nfnets_tf.data.listing import FORMATS, Listing, list_folder
from nfnets_tf.data.preprocessing import decode
from nfnets_tf.data.tfrecords import Record
from nfnets_tf.errors import UserError

_HELD_OUT_SHARE = 5  # one digit in five is held out
_EXAMPLES_A_SHARD = 1024


class Digits:
  """The 1,797 handwritten digits of scikit-learn, as PNG shards.

  8x8 images are enlarged (bicubic) and split for good: 1,437 to train on and
  360 held out, in an order that a fixed seed shuffles. Called, it writes the
  shards if the folder has none.

  Args:
    directory: folder of the shards; "~" is the home folder.
    image_size: pixels of a side, at least 8.
  """

  def __init__(self, *, directory: str, image_size: int):
    self.directory = os.path.expanduser(directory)
    self.image_size = image_size

  def __call__(self) -> bool:
    """Writes the shards; returns whether there was anything to write."""
    if tf.io.gfile.exists(os.path.join(self.directory, INDEX)):
      return False
    write_dataset(
      self.directory,
      self.splits(),
      num_shards={"train": 8, "heldout": 2},
      class_names=[str(digit) for digit in range(10)],
    )
    return True

  def splits(self) -> dict[str, list[Record]]:
    """Returns the records of "train" and "heldout"."""
    records = self._records()
    return {
      "train": [r for i, r in enumerate(records) if i % _HELD_OUT_SHARE],
      "heldout": records[::_HELD_OUT_SHARE],
    }

  def _records(self) -> list[Record]:
    from sklearn import datasets  # a second to import, and needed once

    digits = datasets.load_digits()
    images = tf.cast(digits.images[..., None] * (255 / 16), tf.float32)
    images = tf.image.resize(images, [self.image_size] * 2, method="bicubic")
    images = tf.saturate_cast(tf.round(images), tf.uint8)
    order = np.random.RandomState(0).permutation(len(digits.target))
    return [
      Record(
        encoded=tf.io.encode_png(images[i]).numpy(),
        label=int(digits.target[i]),
        text=str(digits.target[i]),
        filename=f"digit-{i:04d}.png",
        format="png",
      )
      for i in order
    ]


def shards_of(*, directory: str, heldout_share: float, cache: str) -> str:
  """Returns where the folder's shards lie, or will lie, below `cache`.

  The name follows from every image's path, size and time of change, and from
  the split: if the folder changes, it is read anew, and older shards stay what
  they were.
  """
  listing = list_folder(directory, heldout_share)
  name = os.path.basename(os.path.abspath(listing.directory))
  return os.path.join(os.path.expanduser(cache), f"{name}-{listing.key[:12]}")


class Folder:
  """Writes a folder's images as shards, if they are not there yet.

  Args:
    directory: folder of class folders.
    heldout_share: see `list_folder`.
    shards: folder of the shards; `shards_of` names one.
  """

  def __init__(self, *, directory: str, heldout_share: float, shards: str):
    self.directory = directory
    self.heldout_share = heldout_share
    self.shards = shards

  def __call__(self) -> bool:
    """Writes the shards; returns whether there was anything to write.

    Raises:
      UserError: if images cannot be decoded; it names some of them.
    """
    if tf.io.gfile.exists(os.path.join(self.shards, INDEX)):
      return False
    listing = list_folder(self.directory, self.heldout_share)
    _check_images(listing)
    try:
      self._write(listing)
    except (UserError, tf.errors.AlreadyExistsError):
      if tf.io.gfile.exists(os.path.join(self.shards, INDEX)):
        return False  # another run has written them meanwhile
      raise
    return True

  def _write(self, listing: Listing) -> None:
    write_dataset(
      self.shards,
      {name: _Records(listing, part) for name, part in listing.splits.items()},
      num_shards={
        name: -(-len(part) // _EXAMPLES_A_SHARD)
        for name, part in listing.splits.items()
      },
      class_names=listing.class_names,
    )


class _Records(Sequence):
  """The images of a split as records, read when they are asked for."""

  def __init__(self, listing: Listing, images):
    self._listing, self._images = listing, images

  def __len__(self):
    return len(self._images)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return _Records(self._listing, self._images[index])
    path, label = self._images[index]
    text = self._listing.class_names[label]
    return read_image(self._listing.directory, path, label, text)


def read_image(directory: str, path: str, label: int, text: str) -> Record:
  """Reads an image file as the record of a class number and name."""
  kind = FORMATS.get(os.path.splitext(path)[1].lower(), "")
  return Record(_read(directory, path), label, text, path, kind)


def _read(directory: str, path: str) -> bytes:
  with tf.io.gfile.GFile(os.path.join(directory, path), "rb") as file:
    return file.read()


def _check_images(listing: Listing) -> None:
  def fault(path):
    try:
      decode(tf.constant(_read(listing.directory, path)))
    except tf.errors.InvalidArgumentError:
      return path
    return None

  paths = [path for part in listing.splits.values() for path, _ in part]
  with concurrent.futures.ThreadPoolExecutor() as threads:
    faults = [path for path in threads.map(fault, paths) if path]
  if faults:
    some = ", ".join(faults[:3]) + ", ..." * (len(faults) > 3)
    raise UserError(
      f"{len(faults)} of the {len(paths)} images in {listing.directory!r}"
      f" cannot be decoded ({some}); repair or remove them."
    )
