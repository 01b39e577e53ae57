"""The input pipeline of a split: shuffle -> load -> augment -> batch.

Training batches are endless. Evaluation reads every example once, then pads
with examples of weight 0 to whole batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data.augmentation import Augmentation
from nfnets_tf.data.data_service import DataService
from nfnets_tf.data.dataset_info import (
  COUNT_FROM_1,
  SplitInfo,
  evaluation_steps,
  labels_begin_at_1,
  read_split_info,
  require_directory,
)
from nfnets_tf.data.decoding import MAX_PIXELS
from nfnets_tf.data.loading import (
  ExampleLoader,
  dataset_options,
  flatten_copies,
  map_skipping_errors,
)
from nfnets_tf.data.preprocessing import Transform, compose
from nfnets_tf.data.shuffle import ShardedShuffle, read_range
from nfnets_tf.data.tfrecords import Fields
from nfnets_tf.data.validation import PADDING, InvalidRecords, RecordValidator
from nfnets_tf.errors import UserError
from nfnets_tf.ranges import (
  PATH,
  TEXT,
  accepts,
  built,
  each,
  integer,
  optional,
  transform,
)

_PREFETCHED_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class DataStream:
  """One of the equal streams that every epoch's examples are divided into.

  Attributes:
    batch_size: images of this stream in one step, over all replicas, copies by
      repeated augmentation included.
    shuffle_buffer: number of examples held in memory for shuffling.
    seed: seed of the order and of all random transforms.
    index: index of this stream.
    num_streams: number of streams.
  """

  batch_size: int
  shuffle_buffer: int
  seed: int
  index: int = 0
  num_streams: int = 1


@accepts(
  directory=optional(PATH),
  split=TEXT,
  augmentation=optional(built("@augmentation.Augmentation()")),
  fields=optional(built("@tfrecords.Fields()")),
  data_service=optional(built("@data_service.DataService()")),
  num_classes=optional(integer(1)),
  transforms=each(transform("@preprocessing.Resize()")),
  max_pixels=integer(1),
)
class Split:
  """One split of a dataset, and how its images are processed.

  Args:
    directory: folder of the shards; "~" is the home folder.
    split: name of the split, such as "train".
    num_classes: number of classes; labels must be below. None allows any, for
      counting them.
    transforms: applied to every image, in order; the last one fixes the size.
    augmentation: applied to training images after the transforms.
    fields: feature names of the examples; None and the defaults for those that
      TFDS declares, or ImageNet's.
    max_pixels: largest height * width that is decoded.
    data_service: servers that make the training batches; None for this process.

  Attributes:
    invalid_records: counts the records that were skipped; in a batch they have
      weight 0.
  """

  def __init__(
    self,
    *,
    directory: str,
    split: str,
    num_classes: int | None,
    transforms: Sequence[Transform],
    augmentation: Augmentation | None = None,
    fields: Fields | None = None,
    max_pixels: int = MAX_PIXELS,
    data_service: DataService | None = None,
  ):
    self.directory = require_directory(directory)
    self.split = split
    self.num_classes = num_classes
    self.transforms = tuple(transforms)
    self.augmentation = augmentation or Augmentation()
    self.fields, self.max_pixels = fields, max_pixels
    self.data_service = data_service
    self.invalid_records = InvalidRecords(
      split,
      RecordValidator(fields or Fields(), num_classes, max_pixels),
      self.augmentation.records_per_image,
    )

  def read_info(self) -> SplitInfo:
    """Reads the metadata of the split and checks it against `num_classes`.

    Raises:
      UserError: if the shards are unusable; see `read_split_info`.
    """
    info = read_split_info(self.directory, self.split, self.fields)
    self.invalid_records.validate.fields = info.fields
    if self.num_classes is None:
      return info
    named = bool(info.class_names)
    if info.num_classes > self.num_classes or (
      named and info.num_classes != self.num_classes
    ):
      holds = "classes" if named else "classes or more, by its largest label"
      hint = ""
      if not named and labels_begin_at_1(info):
        hint = f"; {COUNT_FROM_1}"
      raise UserError(
        f"the {self.split!r} split of {self.directory!r} has"
        f" {info.num_classes} {holds}, but NUM_CLASSES = {self.num_classes};"
        f" bind NUM_CLASSES to {info.num_classes} or DATA_DIR to other"
        f" data{hint}."
      )
    return info

  def image_shape(self) -> tuple[int, ...]:
    """Returns (height, width, channels) of a transformed image."""
    blank = tf.zeros([64, 64, 3], tf.uint8)
    return tuple(compose(self.transforms)(blank, tf.zeros([2], tf.int64)).shape)

  def training_batches(
    self,
    info: SplitInfo,
    *,
    stream: DataStream,
    start_step: int,
    replicas: int,
  ) -> tf.data.Dataset:
    """Returns the endless batches of one stream.

    Args:
      info: what `read_info` returned.
      stream: which of the streams is read, and how.
      start_step: number of steps already taken.
      replicas: number of replicas that share a step; each batch is for one.

    Returns:
      (images, labels, weights): uint8 [batch, height, width, 3], int32 [batch]
      or `MixedLabels`, float32 [batch]; batch = stream.batch_size / replicas.

    Raises:
      UserError: if a replica's batch is not a multiple of the multiplicity.
    """
    copies = self.augmentation.multiplicity
    records_per_image = self.augmentation.records_per_image
    batch = stream.batch_size // replicas
    if batch % copies:
      raise UserError(
        f"a replica's batch of {batch} is not divisible by MULTIPLICITY ="
        f" {copies}; bind BATCH_SIZE to a multiple of {copies * replicas}."
      )
    loader = self._loader(info)

    def load(position, serialized):
      # Streams interleave their numbers: no two images share a seed.
      turn = position // records_per_image
      number = (turn * stream.num_streams + stream.index) * copies
      return loader.load_training(serialized, stream.seed, number, turn)

    examples = self.training_examples(
      info, stream=stream, start_step=start_step
    )
    if records_per_image > 1:
      examples = examples.batch(records_per_image)
      examples = examples.map(lambda positions, pair: (positions[0], pair))
    batches = self._make_training_batches(examples, load, batch // copies)
    if copies > 1:
      batches = batches.map(flatten_copies)
    batches = batches.prefetch(_PREFETCHED_BATCHES)
    return batches.with_options(dataset_options())

  def training_examples(
    self, info: SplitInfo, *, stream: DataStream, start_step: int
  ) -> tf.data.Dataset:
    """Returns the endless examples of one stream; see `training_batches`.

    Returns:
      (position in the stream, int64 []; serialized example, string []).
    """
    shuffle = ShardedShuffle(
      info.files,
      info.counts,
      seed=stream.seed,
      shuffle_buffer=stream.shuffle_buffer,
      stream=stream.index,
      num_streams=stream.num_streams,
    )
    return shuffle.examples(
      start_step * self.examples_per_step(stream.batch_size)
    )

  def examples_per_step(self, batch_size: int) -> int:
    """Returns the number of examples read for a batch of training images."""
    images = batch_size // self.augmentation.multiplicity
    return images * self.augmentation.records_per_image

  def evaluation_batches(
    self,
    info: SplitInfo,
    *,
    host_batch: int,
    replicas: int,
    host: int = 0,
    num_hosts: int = 1,
  ) -> tf.data.Dataset:
    """Returns batches that hold each example once.

    Args:
      info: what `read_info` returned.
      host_batch: images of this host in one step.
      replicas: of this host; each batch is for one.
      host: index of this host.
      num_hosts: number of hosts.

    Returns:
      (images, labels, weights) as `training_batches`. Padding has weight 0;
      every host gives `evaluation_steps` times `replicas` batches.
    """
    total = host_batch * evaluation_steps(info, host_batch * num_hosts)
    padding = tf.data.Dataset.from_tensors(PADDING).repeat()
    examples = read_range(info.files, info.counts, host * total, total)
    examples = examples.concatenate(padding).take(total)
    loader = self._loader(info)
    batches = self._make_batches(
      examples.enumerate(host * total),
      lambda position, serialized: loader.load_evaluation(serialized),
      host_batch // replicas,
      self.invalid_records.recorder(repeated=True),
    )
    batches = batches.prefetch(_PREFETCHED_BATCHES)
    return batches.with_options(dataset_options())

  def _loader(self, info: SplitInfo) -> ExampleLoader:
    return ExampleLoader(
      info.fields,
      self.num_classes,
      self.transforms,
      self.augmentation,
      self.max_pixels,
    )

  def _make_training_batches(
    self, examples: tf.data.Dataset, load: Callable, batch: int
  ) -> tf.data.Dataset:
    if self.data_service is None:
      return self._make_batches(
        examples, load, batch, self.invalid_records.recorder()
      )
    batches = examples.batch(batch)

    def make_shard(server, num_servers):
      server_examples = batches.shard(num_servers, server).unbatch()
      # Invalid records of another process are not collected.
      shard = self._make_batches(server_examples, load, batch, report=None)
      return shard.with_options(dataset_options())

    return self.data_service.distribute(make_shard)

  def _make_batches(
    self, examples: tf.data.Dataset, load: Callable, batch: int, report
  ) -> tf.data.Dataset:
    # Traced once, for the shapes and for the batches.
    load = tf.function(load)
    traced = load.get_concrete_function(*examples.element_spec)
    spec = tf.nest.map_structure(
      lambda x: tf.TensorSpec(x.shape, x.dtype), traced.structured_outputs
    )
    image = spec[0]
    # Without any transform, an image is still an encoded string.
    shape = None if image.dtype == tf.string else image.shape
    if shape is None or not shape.is_fully_defined():
      raise UserError(
        f"the transforms of the {self.split!r} split return images of shape"
        f" {shape}; expected a fixed size: end them with"
        " @preprocessing.Resize() or another one that takes image_size."
      )
    return map_skipping_errors(
      examples, load, spec=spec, batch_size=batch, report=report
    )
