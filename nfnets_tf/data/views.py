"""From records to what a network sees of them.

For training: parse -> operations -> mix with another image -> operations, as
often as repeated augmentation says. For evaluation: parse -> operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.data.dimensions import MAX_PIXELS, pixel_count
from nfnets_tf.data.mixing import Mixer
from nfnets_tf.data.preprocess import Operation, compose
from nfnets_tf.data.tfrecords import Fields, parse_image_and_label
from nfnets_tf.ops.losses import MixedLabels


class Views:
  """Makes images of records; see `pipeline.Split` for the arguments.

  A record that cannot be used raises `tf.errors.InvalidArgumentError`.
  """

  def __init__(
    self,
    operations: Sequence[Operation],
    mixers: Sequence[Mixer],
    mixed_operations: Sequence[Operation],
    *,
    num_classes: int,
    multiplicity: int = 1,
    max_pixels: int = MAX_PIXELS,
  ):
    self._operations = compose(operations)
    self._mixers = tuple(mixers)
    self._mixed_operations = compose(mixed_operations)
    self._multiplicity = multiplicity
    self._num_classes = num_classes
    self._max_pixels = max_pixels

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
    fields: Fields,
    seed: int,
    number: tf.Tensor,
    turn: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor | MixedLabels]:
    """Returns all copies of an image.

    Args:
      serialized: a record, or two of them if `sources` is 2.
      fields: what it calls its parts.
      seed: of the run.
      number: of the first copy among all images that were ever trained on,
        int64; it decides, with the seed, what is drawn.
      turn: number of the image on this host; whose turn it is to mix it.

    Returns:
      uint8 [multiplicity, height, width, 3], and labels [multiplicity]; with a
      multiplicity of 1, an image and its label.
    """
    make = self._mixed if self._mixers else self._single
    if self._multiplicity == 1:
      return make(serialized, fields, tf.stack([seed, number]), turn)
    copies = [
      make(serialized, fields, tf.stack([seed, number + copy]), turn)
      for copy in range(self._multiplicity)
    ]
    return tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *copies)

  def evaluation(
    self, serialized: tf.Tensor, fields: Fields
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image of a record and its label."""
    return self._load(serialized, fields, tf.zeros([2], tf.int64))

  def _single(self, serialized, fields, seed, turn):
    del turn
    image, label = self._load(serialized, fields, seed)
    return self._mixed_operations(image, _fold(seed, 3)), label

  def _mixed(self, serialized, fields, seed, turn):
    (first, label), (second, other) = (
      self._load(serialized[i], fields, _fold(seed, i)) for i in (0, 1)
    )
    image, share = tf.switch_case(
      tf.cast(turn % len(self._mixers), tf.int32),
      [
        lambda mixer=mixer: mixer(first, second, _fold(seed, 2))
        for mixer in self._mixers
      ],
    )
    image = self._mixed_operations(image, _fold(seed, 3))
    return image, MixedLabels(label, other, share)

  def _load(self, serialized, fields, seed):
    image, label = parse_image_and_label(serialized, fields)
    within = (label >= 0) & (label < self._num_classes)
    tf.debugging.Assert(within, ["label out of range", label])
    if not fields.raw:
      pixels = pixel_count(image)
      tf.debugging.Assert(
        pixels <= self._max_pixels, ["image too large", pixels]
      )
    return self._operations(image, seed), tf.cast(label, tf.int32)


def _fold(seed, index):
  return tf.random.experimental.stateless_fold_in(seed, index)
