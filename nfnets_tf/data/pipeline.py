"""From shards to batches: the only place that orders the stages.

Training: order -> views -> batches, without end.
Evaluation: every example once, then padding of weight 0 to whole batches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.data import preprocess, tuning
from nfnets_tf.data.dataset_info import (
  SplitInfo,
  evaluation_steps,
  read_split_info,
)
from nfnets_tf.data.dimensions import MAX_PIXELS
from nfnets_tf.data.faults import Examiner, Faults
from nfnets_tf.data.loading import (
  PADDING,
  load_batches,
  side_by_side_copies,
)
from nfnets_tf.data.mixing import Mixer
from nfnets_tf.data.order import ShardOrder, read_part
from nfnets_tf.data.service import Service
from nfnets_tf.data.tfrecords import Fields
from nfnets_tf.data.views import Views
from nfnets_tf.errors import UserError

_BATCHES_AHEAD = 2


class Split:
  """One split of a data set and what is done to its images.

  Args:
    directory: folder of the shards; "~" is the home folder.
    split: name of the split, such as "train".
    num_classes: number of classes; every label must be below.
    operations: `preprocess` operations, applied in order.
    mixers: how images are made of two that are read: the first image by the
      first, the next by the next, and so on in turn. `mixing.MixUp` and
      `mixing.CutMix` are DeepMind's pair: half of a batch each. The batch keeps
      its size and a step reads twice as many images; none is no mixing.
    mixed_operations: applied after mixing.
    last_operations: applied after those.
    multiplicity: how many times an image that is read for training enters the
      batch, each time with other random operations: repeated augmentation
      (Fort et al. 2021, arXiv 2105.13343). The batch keeps its size, so that it
      holds fewer different images, and copies share a replica.
    fields: what the shards' examples call their parts; None is what TFDS says,
      and ImageNet's names elsewhere.
    max_pixels: height times width that is decoded at most.
    service: a `service.Service` whose servers make training's batches, or None.

  Attributes:
    faults: counts the records that could not be used; in a batch they have
      weight 0.
  """

  def __init__(
    self,
    *,
    directory: str,
    split: str,
    num_classes: int,
    operations: Sequence[preprocess.Operation],
    mixers: Sequence[Mixer] = (),
    mixed_operations: Sequence[preprocess.Operation] = (),
    last_operations: Sequence[preprocess.Operation] = (),
    multiplicity: int = 1,
    fields: Fields | None = None,
    max_pixels: int = MAX_PIXELS,
    service: Service | None = None,
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
    self.mixed_operations = (*mixed_operations, *last_operations)
    self.multiplicity = multiplicity
    self.fields, self.service = fields, service
    self._views = Views(
      operations,
      mixers,
      self.mixed_operations,
      multiplicity=multiplicity,
      num_classes=num_classes,
      max_pixels=max_pixels,
    )
    examine = Examiner(fields or Fields(), num_classes, max_pixels)
    self.faults = Faults(split, examine, self._views.sources)

  def index(self) -> SplitInfo:
    """Reads what the split holds and checks it against `num_classes`.

    Raises:
      UserError: if the shards cannot be used; see `read_split_info`.
    """
    index = read_split_info(self.directory, self.split, self.fields)
    self.faults.examine.fields = index.fields
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
    return self._views.image_shape()

  def training_batches(
    self,
    index: SplitInfo,
    *,
    host_batch: int,
    replicas: int,
    start_step: int,
    shuffle_buffer: int,
    seed: int,
    host: int = 0,
    num_hosts: int = 1,
  ) -> tf.data.Dataset:
    """Returns batches from step `start_step` on, for ever.

    Args:
      index: what `index()` returned.
      host_batch: images of this host in one step, copies included.
      replicas: of this host; each batch is for one of them.
      start_step: number of steps already made.
      shuffle_buffer: examples held in memory for shuffling.
      seed: of the order and of each example's random operations.
      host: index of this host.
      num_hosts: number of hosts.

    Returns:
      Batches (images, labels, weights) of a replica each.

    Raises:
      UserError: if a replica's batch is no multiple of the multiplicity.
    """
    copies, sources = self.multiplicity, self._views.sources
    batch = host_batch // replicas
    if batch % copies:
      raise UserError(
        f"a replica's batch of {batch} does not divide by MULTIPLICITY ="
        f" {copies}; bind BATCH_SIZE to a multiple of {copies * replicas}."
      )
    examples = self.training_examples(
      index,
      host_batch=host_batch,
      start_step=start_step,
      shuffle_buffer=shuffle_buffer,
      seed=seed,
      host=host,
      num_hosts=num_hosts,
    )

    def load(position, serialized):
      # Every host counts from 0; interleaved, no two images share a seed.
      turn = position // sources
      number = (turn * num_hosts + host) * copies
      return self._views.training(serialized, index.fields, seed, number, turn)

    if sources > 1:
      examples = examples.batch(sources).map(lambda p, x: (p[0], x))
    batches = self._served_or_made(examples, load, batch // copies)
    if copies > 1:
      batches = batches.map(side_by_side_copies)
    batches = batches.prefetch(_BATCHES_AHEAD)
    return batches.with_options(tuning.options())

  def training_examples(
    self, index: SplitInfo, *, host_batch: int, start_step: int, **order
  ) -> tf.data.Dataset:
    """Returns (position, serialized example) from a step on, for ever.

    The arguments are those of `training_batches`.
    """
    read = start_step * self.examples_a_step(host_batch)
    return ShardOrder(index.files, index.counts, **order).examples(read)

  def examples_a_step(self, host_batch: int) -> int:
    """Returns how many examples are read for so many images."""
    return host_batch // self.multiplicity * self._views.sources

  def evaluation_batches(
    self,
    index: SplitInfo,
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
    padding = tf.data.Dataset.from_tensors(PADDING).repeat()
    examples = read_part(index.files, index.counts, host * total, total)
    examples = examples.concatenate(padding).take(total)
    batches = self._loaded(
      examples.enumerate(),
      lambda _, x: self._views.evaluation(x, index.fields),
      host_batch // replicas,
      self.faults.recorder(repeated=True),
    )
    batches = batches.prefetch(_BATCHES_AHEAD)
    return batches.with_options(tuning.options())

  def _served_or_made(self, examples, load, batch: int) -> tf.data.Dataset:
    """Returns what `_loaded` does."""
    if self.service is None:
      return self._loaded(examples, load, batch, self.faults.recorder())
    batches = examples.batch(batch)
    # What a server lays aside nobody would collect.
    return self.service.collect(
      lambda server, servers: self._loaded(
        batches.shard(servers, server).unbatch(), load, batch, None
      )
    )

  def _loaded(
    self, examples: tf.data.Dataset, load, batch: int, reject
  ) -> tf.data.Dataset:
    """Returns (images, labels, weights), if images have a fixed size."""
    spec = examples.map(load).element_spec
    image = spec[0]
    # Without any operation it is a string still.
    shape = None if image.dtype == tf.string else image.shape
    if shape is None or not shape.is_fully_defined():
      raise UserError(
        f"the operations of the {self.split!r} split give images of shape"
        f" {shape}; expected a fixed size: end them with @preprocess.Resize()"
        " or another that takes image_size."
      )
    return load_batches(examples, load, spec, reject, batch=batch)
