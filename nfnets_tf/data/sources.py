"""Where shards come from: images that are at hand, written once."""

import os

import numpy as np
import tensorflow as tf

from nfnets_tf.data.records import INDEX, Record, write_dataset

_HELD_OUT_SHARE = 5  # one digit in five is held out


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
    records = self._records()
    held_out = records[::_HELD_OUT_SHARE]
    train = [r for i, r in enumerate(records) if i % _HELD_OUT_SHARE]
    write_dataset(
      self.directory,
      {"train": train, "heldout": held_out},
      num_shards={"train": 8, "heldout": 2},
      class_names=[str(digit) for digit in range(10)],
    )
    return True

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
