"""From shards to batches: the only place that orders the stages.

Training: order -> parse -> preprocess -> batch -> prefetch, without end; with
repeated augmentation every image is preprocessed several times over.
Evaluation: every example once, then padding of weight 0 to whole batches.
"""

import os
from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.data import preprocess, tuning
from nfnets_tf.data.order import ShardOrder
from nfnets_tf.data.records import IMAGE, LABEL, SplitIndex, read_index
from nfnets_tf.ops.errors import UserError

_FEATURES = {
  IMAGE: tf.io.FixedLenFeature([], tf.string),
  LABEL: tf.io.FixedLenFeature([], tf.int64),
}
_BATCHES_AHEAD = 2


class Split:
  """One split of a data set and what is done to its images.

  Args:
    directory: folder of the shards; "~" is the home folder.
    split: name of the split, such as "train".
    num_classes: number of classes; every label must be below.
    operations: `preprocess` operations, applied in order.
    multiplicity: how many times an image that is read for training enters the
      batch, each time with other random operations: repeated augmentation
      (Fort et al. 2021, arXiv 2105.13343). The batch keeps its size, so that it
      holds fewer different images, and copies share a replica.
  """

  def __init__(
    self,
    *,
    directory: str,
    split: str,
    num_classes: int,
    operations: Sequence[preprocess.Operation],
    multiplicity: int = 1,
  ):
    if not isinstance(multiplicity, int) or multiplicity < 1:
      raise UserError(
        f"Split.multiplicity = {multiplicity!r} cannot be used; bind"
        " MULTIPLICITY to a whole number of at least 1."
      )
    self.directory = os.path.expanduser(directory)
    self.split = split
    self.num_classes = num_classes
    self.operations = tuple(operations)
    self.multiplicity = multiplicity
    self._preprocess = preprocess.compose(self.operations)

  def index(self) -> SplitIndex:
    """Reads what the split holds and checks it against `num_classes`.

    Raises:
      UserError: if the shards cannot be used; see `records.read_index`.
    """
    index = read_index(self.directory, self.split)
    named = bool(index.class_names)
    if index.num_classes > self.num_classes or (
      named and index.num_classes != self.num_classes
    ):
      holds = "classes" if named else "classes or more, by its largest label"
      raise UserError(
        f"the {self.split!r} split in {self.directory!r} has"
        f" {index.num_classes} {holds}, but NUM_CLASSES = {self.num_classes};"
        f" bind NUM_CLASSES to {index.num_classes} or DATA_DIR to other data."
      )
    return index

  def image_shape(self) -> tuple[int, ...]:
    """Returns [height, width, channels] of a preprocessed image."""
    blank = tf.zeros([64, 64, 3], tf.uint8)
    return tuple(self._preprocess(blank, tf.zeros([2], tf.int64)).shape)

  def training_batches(
    self,
    index: SplitIndex,
    *,
    host_batch: int,
    replicas: int,
    start_step: int,
    shuffle_buffer: int,
    seed: int,
    host: int = 0,
    num_hosts: int = 1,
  ) -> tf.data.Dataset:
    """Returns batches (images, labels) from step `start_step` on, for ever.

    Args:
      index: what `index()` returned.
      host_batch: images of this host in one step, copies included.
      replicas: of this host; each batch is for one of them.
      start_step: number of steps already made.
      shuffle_buffer: examples held in memory for shuffling.
      seed: of the order and of each example's random operations.
      host: index of this host.
      num_hosts: number of hosts.

    Raises:
      UserError: if a replica's batch is no multiple of the multiplicity.
    """
    copies = self.multiplicity
    batch = host_batch // replicas
    if batch % copies:
      raise UserError(
        f"a replica's batch of {batch} does not divide by MULTIPLICITY ="
        f" {copies}; bind BATCH_SIZE to a multiple of {copies * replicas}."
      )
    order = ShardOrder(
      index.files,
      index.counts,
      seed=seed,
      shuffle_buffer=shuffle_buffer,
      host=host,
      num_hosts=num_hosts,
    )

    def load(position, serialized):
      # Every host counts from 0; interleaved, no two images share a seed.
      number = (position * num_hosts + host) * copies
      views = [
        self._load(serialized, tf.stack([seed, number + copy]))
        for copy in range(copies)
      ]
      return tuple(map(tf.stack, zip(*views)))

    examples = order.examples(start_step * (host_batch // copies)).map(
      load, tuning.parallel_calls(), deterministic=True
    )
    batches = (
      self._sized(examples)
      .batch(batch // copies, drop_remainder=True)
      .map(_side_by_side)
      .prefetch(_BATCHES_AHEAD)
    )
    return batches.with_options(tuning.options())

  def evaluation_batches(
    self,
    index: SplitIndex,
    *,
    host_batch: int,
    replicas: int,
    host: int = 0,
    num_hosts: int = 1,
  ) -> tf.data.Dataset:
    """Returns batches (images, labels, weights) that hold each example once.

    Padding has weight 0; every host gives `evaluation_steps` whole batches.
    """
    total = host_batch * evaluation_steps(index, host_batch * num_hosts)
    examples = (
      tf.data.TFRecordDataset(list(index.files))
      .shard(num_hosts, host)
      .map(
        lambda x: (*self._load(x, tf.zeros([2], tf.int64)), 1.0),
        tuning.parallel_calls(),
        deterministic=True,
      )
    )
    padding = tf.data.Dataset.from_tensors(
      tuple(tf.zeros(s.shape, s.dtype) for s in examples.element_spec)
    )
    batches = (
      self._sized(examples)
      .concatenate(padding.repeat())
      .take(total)
      .batch(host_batch // replicas, drop_remainder=True)
      .prefetch(_BATCHES_AHEAD)
    )
    return batches.with_options(tuning.options())

  def _load(self, serialized, seed):
    features = tf.io.parse_single_example(serialized, _FEATURES)
    image = self._preprocess(features[IMAGE], seed)
    return image, tf.cast(features[LABEL], tf.int32)

  def _sized(self, examples: tf.data.Dataset) -> tf.data.Dataset:
    """Returns `examples` if their images have a fixed size."""
    image = examples.element_spec[0]
    # Without any operation it is a string still.
    shape = None if image.dtype == tf.string else image.shape
    if shape is None or not shape.is_fully_defined():
      raise UserError(
        f"the operations of the {self.split!r} split give images of shape"
        f" {shape}; expected a fixed size: end them with @preprocess.Resize()"
        " or another that takes image_size."
      )
    return examples


def evaluation_steps(index: SplitIndex, batch_size: int) -> int:
  """Number of batches that hold the whole split."""
  return -(-index.num_examples // batch_size)


def _side_by_side(images, labels):
  """Joins the axes of images and copies: [n, copies, ...] to [n * copies]."""
  batch = images.shape[0] * images.shape[1]
  shape = [batch, *images.shape[2:]]
  return tf.reshape(images, shape), tf.reshape(labels, [batch])
