"""The order of examples: a deterministic function of (seed, epoch, step).

Every epoch the shards are permuted, and the concatenation of their examples is
cut into equal streams. A stream is read in groups of shards; while one group is
consumed, the next one is read. Resuming needs only the number of examples read
so far, and reads one group before the first example comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.data.tfrecords import read_segment
from nfnets_tf.errors import UserError

_MAX_OPEN_FILES = 16
_BLOCK_LENGTH = 8  # records from one file before the next file's turn


class Segment(NamedTuple):
  """Consecutive records of a shard, or of n shards.

  Attributes:
    shard: number of the shard, int32 [] or [n].
    begin: position of the first record, int64 [] or [n].
    size: number of records, int64 [] or [n].
  """

  shard: tf.Tensor
  begin: tf.Tensor
  size: tf.Tensor


class ShardedShuffle:
  """The examples that one stream reads in every epoch, in order.

  Of n examples each of s streams reads n / s an epoch, rounded so that after
  any number of epochs no stream is more than one example ahead of another.

  Args:
    files: paths of all shards.
    counts: number of examples in each.
    seed: seed of the order.
    shuffle_buffer: number of examples held in memory, half of them for a group
      of shards and half for the next group. A group has as many shards as fit,
      at least one. A shard that does not fit is shuffled in windows of half the
      buffer.
    stream: index of this stream.
    num_streams: number of streams that share every epoch.

  Raises:
    UserError: if there are no examples.
  """

  def __init__(
    self,
    files: Sequence[str],
    counts: Sequence[int],
    *,
    seed: int,
    shuffle_buffer: int,
    stream: int = 0,
    num_streams: int = 1,
  ):
    self.files = list(files)
    self.counts = np.asarray(counts, np.int64)
    self.num_examples = int(self.counts.sum())
    if not self.num_examples:
      raise UserError(
        f"{len(self.files)} shards hold no examples; expected at least one."
      )
    self._seed = seed
    self._stream, self._num_streams = stream, num_streams
    largest = int(self.counts.max())
    self._window = max(1, shuffle_buffer // 2)
    self._group_size = max(1, self._window // largest)
    # An oversized group is emitted in chunks of an eighth of the buffer: three
    # chunks are in flight on top of the full shuffle window.
    fits = largest <= self._window
    self._chunk = self._window if fits else max(1, shuffle_buffer // 8)

  def examples_before(self, epoch: int) -> int:
    """Returns how many examples this stream reads before an epoch."""
    return -((self._stream - epoch * self.num_examples) // self._num_streams)

  def examples(self, start: int) -> tf.data.Dataset:
    """Returns an endless dataset of examples.

    Args:
      start: number of examples that this stream has already read.

    Returns:
      (position in the stream, int64 []; serialized example, string []).
    """
    epoch = (start * self._num_streams + self._stream) // self.num_examples
    skip = start - self.examples_before(epoch)
    segments = self._segments(tf.constant(epoch, tf.int64))
    group = 0
    while skip >= (
      size := int(tf.reduce_sum(self._group(segments, group).size))
    ):
      skip -= size
      group += 1
    first_group = tf.constant(group, tf.int64)
    chunks = (
      tf.data.Dataset.counter(epoch)
      .flat_map(
        lambda number: self._read_epoch(
          number, tf.where(number > epoch, tf.zeros_like(number), first_group)
        )
      )
      .prefetch(1)
    )
    return chunks.unbatch().skip(skip).enumerate(start)

  def _epoch_seed(self, epoch) -> tf.Tensor:
    return tf.stack([tf.cast(self._seed, tf.int64), epoch])

  def _bounds(self, epoch) -> tuple[tf.Tensor, tf.Tensor]:
    streams = tf.range(self._num_streams, dtype=tf.int64)
    before, after = (
      -((streams - number * self.num_examples) // self._num_streams)
      for number in (epoch, epoch + 1)
    )
    ends = tf.cumsum(after - before)
    begin = ends[self._stream - 1] if self._stream else tf.zeros([], tf.int64)
    return begin, ends[self._stream]

  def _segments(self, epoch) -> Segment:
    keys = tf.random.stateless_uniform(
      [len(self.files)], self._epoch_seed(epoch), alg="philox"
    )
    shards = tf.argsort(keys, stable=True)
    sizes = tf.gather(tf.constant(self.counts), shards)
    ends = tf.cumsum(sizes)
    low, high = self._bounds(epoch)
    begin = tf.maximum(ends - sizes, low)
    size = tf.minimum(ends, high) - begin
    nonempty = tf.where(size > 0)[:, 0]
    segments = Segment(shards, begin - (ends - sizes), size)
    return Segment(*(tf.gather(column, nonempty) for column in segments))

  def _group(self, segments: Segment, group) -> Segment:
    begin = group * self._group_size
    return Segment(*(x[begin : begin + self._group_size] for x in segments))

  def _read_epoch(self, epoch, first_group) -> tf.data.Dataset:
    # A chunk is a group, or less of an oversized one.
    segments = self._segments(epoch)
    groups = -(-tf.shape(segments.size, tf.int64)[0] // self._group_size)
    return tf.data.Dataset.range(first_group, groups).flat_map(
      lambda group: self._read_group(
        epoch, group, self._group(segments, group)
      ).batch(self._chunk)
    )

  def _read_group(self, epoch, group, segments: Segment) -> tf.data.Dataset:
    paths = tf.gather(tf.constant(self.files), segments.shard)
    # Parallel reading holds a block of each file on top of the window.
    open_files = min(self._group_size, _MAX_OPEN_FILES)
    records = tf.data.Dataset.from_tensor_slices(
      (paths, segments.begin, segments.size)
    ).interleave(
      read_segment,
      cycle_length=open_files,
      block_length=_BLOCK_LENGTH,
      num_parallel_calls=open_files if open_files > 1 else None,
    )
    group_seed = tf.random.stateless_uniform(
      [2],
      tf.random.experimental.stateless_fold_in(self._epoch_seed(epoch), group),
      minval=1,  # for the seed (0, 0) TensorFlow would choose a random one
      maxval=tf.int64.max,
      dtype=tf.int64,
    )
    return _shuffle(records, self._window, group_seed)


def read_range(
  files: Sequence[str], counts: Sequence[int], begin: int, size: int
) -> tf.data.Dataset:
  """Reads consecutive records of a list of shards, in order.

  Args:
    files: paths of the shards.
    counts: number of records in each.
    begin: position of the first record over all shards.
    size: number of records; fewer are read at the end of the last shard.

  Returns:
    Serialized examples, string [].
  """
  ends = np.cumsum(counts)
  starts = ends - counts
  first = np.clip(begin - starts, 0, counts)
  sizes = np.clip(begin + size - starts, 0, counts) - first
  (nonempty,) = np.nonzero(sizes)  # other shards are not even opened
  paths = tf.constant([files[i] for i in nonempty], tf.string)
  segments = tf.data.Dataset.from_tensor_slices(
    (paths, first[nonempty], sizes[nonempty])
  )
  return segments.flat_map(read_segment)


def _shuffle(records: tf.data.Dataset, window: int, seed) -> tf.data.Dataset:
  # `Dataset.shuffle` would mix TensorFlow's global seed into the order.
  variant = tf.raw_ops.ShuffleDataset(
    input_dataset=tf.data.experimental.to_variant(records),
    buffer_size=window,
    seed=seed[0],
    seed2=seed[1],
    reshuffle_each_iteration=False,
    output_types=[tf.string],
    output_shapes=[[]],
  )
  return tf.data.experimental.from_variant(variant, records.element_spec)
