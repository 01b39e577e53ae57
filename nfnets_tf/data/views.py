"""From records to what a network sees of them.

For training: parse -> operations -> mix with another image -> operations, as
often as repeated augmentation says. For evaluation: parse -> operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.data.mixing import Mixer
from nfnets_tf.data.preprocess import Operation, compose
from nfnets_tf.data.records import IMAGE, LABEL
from nfnets_tf.ops.losses import MixedLabels

_FEATURES = {
  IMAGE: tf.io.FixedLenFeature([], tf.string),
  LABEL: tf.io.FixedLenFeature([], tf.int64),
}


class Views:
  """Makes images of records; see `pipeline.Split` for the arguments."""

  def __init__(
    self,
    operations: Sequence[Operation],
    mixers: Sequence[Mixer],
    mixed_operations: Sequence[Operation],
    *,
    multiplicity: int,
  ):
    self._operations = compose(operations)
    self._mixers = tuple(mixers)
    self._mixed_operations = compose(mixed_operations)
    self._multiplicity = multiplicity

  @property
  def sources(self) -> int:
    """Number of records that one image is made of."""
    return 2 if self._mixers else 1

  def image_shape(self) -> tuple[int, ...]:
    """Returns [height, width, channels] of an image."""
    blank = tf.zeros([64, 64, 3], tf.uint8)
    return tuple(self._operations(blank, tf.zeros([2], tf.int64)).shape)

  def training(
    self,
    serialized: tf.Tensor,
    seed: int,
    number: tf.Tensor,
    turn: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor | MixedLabels]:
    """Returns all copies of an image.

    Args:
      serialized: a record, or two of them if `sources` is 2.
      seed: of the run.
      number: of the first copy among all images that were ever trained on,
        int64; it decides, with the seed, what is drawn.
      turn: number of the image on this host; whose turn it is to mix it.

    Returns:
      uint8 [multiplicity, height, width, 3], and labels [multiplicity].
    """
    make = self._mixed if self._mixers else self._single
    copies = [
      make(serialized, tf.stack([seed, number + copy]), turn)
      for copy in range(self._multiplicity)
    ]
    return tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *copies)

  def evaluation(self, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image of a record and its label."""
    return self._load(serialized, tf.zeros([2], tf.int64))

  def _single(self, serialized, seed, turn):
    del turn
    image, label = self._load(serialized, seed)
    return self._mixed_operations(image, _fold(seed, 3)), label

  def _mixed(self, serialized, seed, turn):
    first, label = self._load(serialized[0], _fold(seed, 0))
    second, other = self._load(serialized[1], _fold(seed, 1))
    image, share = tf.switch_case(
      tf.cast(turn % len(self._mixers), tf.int32),
      [
        lambda mixer=mixer: mixer(first, second, _fold(seed, 2))
        for mixer in self._mixers
      ],
    )
    image = self._mixed_operations(image, _fold(seed, 3))
    return image, MixedLabels(label, other, share)

  def _load(self, serialized, seed):
    features = tf.io.parse_single_example(serialized, _FEATURES)
    image = self._operations(features[IMAGE], seed)
    return image, tf.cast(features[LABEL], tf.int32)


def _fold(seed, index):
  return tf.random.experimental.stateless_fold_in(seed, index)
