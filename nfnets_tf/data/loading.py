"""From serialized records to batches of images; invalid records get weight 0.

Also how and where tf.data runs all our datasets: `parallel_calls`,
`dataset_options`, `current_host`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data.augmentation import Augmentation
from nfnets_tf.data.decoding import MAX_PIXELS, pixel_count
from nfnets_tf.data.preprocessing import Transform, compose
from nfnets_tf.data.tfrecords import Fields, parse_image_and_label
from nfnets_tf.ops.losses import MixedLabels
from nfnets_tf.ops.stateless_random import fold_seed

_MAX_WINDOW = 16


def parallel_calls() -> int:
  """Number of elements computed at a time: the cores this process may use.

  Not `AUTOTUNE`: see `dataset_options`.
  """
  if hasattr(os, "sched_getaffinity"):  # on Linux only
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def current_host() -> str:
  """Returns the CPU of the host whose datasets are being made.

  On a slice a strategy makes each host's datasets in the scope of its device;
  elsewhere it is this process's.
  """
  with tf.device("CPU:0"):
    return tf.zeros([]).device


def dataset_options() -> tf.data.Options:
  """Returns options for a fixed order, without autotuning and autosharding."""
  options = tf.data.Options()
  options.deterministic = True
  # The autotuner's thread polls with exponential back-off, up to 60 s, and may
  # miss the iterator's destruction (TensorFlow 2.15): one time in three,
  # destroying an iterator blocks until it wakes, for tens of seconds at the end
  # of an evaluation. There is nothing to tune: decoding takes every core.
  options.autotune.enabled = False
  # Images keep all cores busy; splitting one op over cores only adds waiting.
  options.threading.max_intra_op_parallelism = 1
  # Streams are assigned to hosts by us; TensorFlow's own choice between files
  # and examples falls back silently.
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.OFF
  )
  return options


class ExampleLoader:
  """Parses records, decodes images, and applies transforms and augmentation.

  An invalid record raises `tf.errors.InvalidArgumentError`.

  Args:
    fields: feature names of the examples.
    num_classes: labels must be below.
    transforms: applied to every image.
    augmentation: applied to training images.
    max_pixels: largest height * width that is decoded.
  """

  def __init__(
    self,
    fields: Fields,
    num_classes: int,
    transforms: Sequence[Transform],
    augmentation: Augmentation | None = None,
    max_pixels: int = MAX_PIXELS,
  ):
    self._fields = fields
    self._num_classes = num_classes
    self._transform = compose(transforms)
    self._augmentation = augmentation or Augmentation()
    self._post_mix_transform = compose(self._augmentation.transforms)
    self._max_pixels = max_pixels

  def load_training(
    self,
    serialized: tf.Tensor,
    seed: int,
    image_number: tf.Tensor,
    turn: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor | MixedLabels]:
    """Loads all copies of a training image.

    Args:
      serialized: a record, string [], or with mixing two of them, string [2].
      seed: seed of the run.
      image_number: of the first copy among all images ever trained on, int64
        []; with the seed it determines all random draws.
      turn: number of the image in its stream, int64 []; chooses the mixer.

    Returns:
      uint8 [multiplicity, height, width, 3], and labels, int32 [multiplicity]
      or `MixedLabels`; without that axis for a multiplicity of 1.
    """
    copies = [
      self._load_copy(serialized, tf.stack([seed, image_number + copy]), turn)
      for copy in range(self._augmentation.multiplicity)
    ]
    if len(copies) == 1:
      return copies[0]
    return tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *copies)

  def load_evaluation(
    self, serialized: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Loads a record, string []: uint8 [height, width, 3], label int32 []."""
    return self._load(serialized, tf.zeros([2], tf.int64))

  def _load_copy(self, serialized, seed, turn):
    if mixers := self._augmentation.batch_mixers:
      (first, first_label), (second, second_label) = (
        self._load(serialized[i], fold_seed(seed, i)) for i in (0, 1)
      )
      image, weight = tf.switch_case(
        tf.cast(turn % len(mixers), tf.int32),
        [
          lambda mixer=mixer: mixer(first, second, fold_seed(seed, 2))
          for mixer in mixers
        ],
      )
      label = MixedLabels(first_label, second_label, weight)
    else:
      image, label = self._load(serialized, seed)
    return self._post_mix_transform(image, fold_seed(seed, 3)), label

  def _load(self, serialized, seed):
    image, label = parse_image_and_label(serialized, self._fields)
    in_range = (label >= 0) & (label < self._num_classes)
    tf.debugging.Assert(in_range, ["label out of range", label])
    if not self._fields.raw:
      pixels = pixel_count(image)
      tf.debugging.Assert(
        pixels <= self._max_pixels, ["image too large", pixels]
      )
    return self._transform(image, seed), tf.cast(label, tf.int32)


def map_skipping_errors(
  records: tf.data.Dataset,
  load: Callable,
  *,
  spec,
  batch_size: int,
  report: Callable[..., tf.Operation] | None = None,
) -> tf.data.Dataset:
  """Maps elements to batches, in parallel and in order; skips errors.

  An element for which `load` raises becomes zeros of weight 0. All others keep
  their positions.

  Args:
    records: (position, int64 []; serialized records) elements.
    load: maps such an element to a tuple of tensors.
    spec: element spec of its result, with static shapes.
    batch_size: elements a batch; the remainder at the end is dropped.
    report: called inside the dataset with the positions, int64 [n], and the
      records for which `load` raised; returns an operation. None disables
      reporting (the dataset runs in another process).

  Returns:
    Batches (*results of `load`, weights), the weights float32 [batch_size].
  """
  # Within a map nothing catches an error, but `ignore_errors` of a dataset
  # does. A dataset for each element would cost a tenth of the time; one for
  # each window of elements costs little.
  window = max(d for d in range(1, _MAX_WINDOW + 1) if batch_size % d == 0)
  parallel = parallel_calls()
  return (
    records.batch(window, drop_remainder=True)
    .interleave(
      lambda *examples: _load_window(examples, load, spec, report, window),
      cycle_length=2 * parallel,  # a window ahead for every core
      num_parallel_calls=parallel,
    )
    .batch(batch_size // window, drop_remainder=True)
    .map(flatten_leading_axes)
  )


def _load_window(examples, load, spec, report, window: int) -> tf.data.Dataset:
  indices = tf.range(window, dtype=tf.int64)
  loaded = tf.data.Dataset.from_tensor_slices((indices, *examples)).map(
    lambda index, *record: (index, load(*record))
  )
  # If all fail, there is no batch: an empty one replaces it.
  empty = tf.nest.map_structure(
    lambda tensor: tf.zeros([0, *tensor.shape], tensor.dtype),
    (tf.TensorSpec([], tf.int64), spec),
  )
  return (
    loaded.ignore_errors()
    .batch(window)
    .concatenate(tf.data.Dataset.from_tensors(empty))
    .take(1)
    .map(lambda valid, rows: _fill_gaps(valid, rows, examples, spec, report))
  )


def _fill_gaps(valid, rows, examples, spec, report):
  """Puts rows at their indices `valid`; returns (*structure, weights)."""
  window = examples[0].shape[0]

  def scatter(values):
    shape = [window, *values.shape[1:]]
    return tf.scatter_nd(valid[:, tf.newaxis], values, shape)

  def with_gaps():
    weights = scatter(tf.ones_like(valid, tf.float32))
    invalid = [tf.boolean_mask(part, weights < 1.0) for part in examples]
    reports = [] if report is None else [report(*invalid)]
    with tf.control_dependencies(reports):
      return tf.nest.map_structure(scatter, rows), weights

  complete = tf.equal(tf.size(valid), window)
  filled, weights = tf.cond(
    complete, lambda: (rows, tf.ones([window])), with_gaps
  )
  filled = tf.nest.map_structure(
    lambda tensor, row: tf.ensure_shape(tensor, [window, *row.shape]),
    filled,
    spec,
  )
  return *filled, weights


def flatten_copies(*tensors):
  """Flattens images and labels, [n, copies, ...], to [n * copies, ...].

  The last tensor, the weights [n], is repeated for the copies.
  """
  *examples, weights = tensors
  flat = flatten_leading_axes(*examples)
  copies = flat[0].shape[0] // weights.shape[0]
  return *flat, tf.repeat(weights, copies)


def flatten_leading_axes(*tensors):
  """Reshapes [m, n, ...] to [m * n, ...]; both sizes are static."""
  return tf.nest.map_structure(
    lambda x: tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]]), tensors
  )
