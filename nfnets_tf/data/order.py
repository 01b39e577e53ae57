"""The order of examples: a function of (seed, epoch, step).

Every epoch the shards are permuted as a whole, and the hosts cut the row of all
their examples into equal parts: over all hosts each example comes once. A host
reads its part in groups of shards, the next one while the last one is used.
Nothing but the number of examples already read is needed to go on from any
point, and going on reads one group before the first example comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.data.tfrecords import read_segment
from nfnets_tf.errors import UserError

_FILES_AT_ONCE = 16
_RECORDS_AT_ONCE = 8  # from one file before the next one's turn


class _Piece(NamedTuple):
  """Some consecutive records of a shard, or of several: tensors [pieces].

  Attributes:
    file: number of the shard.
    begin: its first record that is read.
    size: how many are.
  """

  file: tf.Tensor
  begin: tf.Tensor
  size: tf.Tensor


class ShardOrder:
  """The part of every epoch that one host reads, in order.

  An example's number, counted over all epochs, decides how many a host has: of
  n examples and h hosts, each reads n / h an epoch, rounded so that after any
  number of epochs none is ahead of another by more than one.

  Args:
    files: paths of all shards.
    counts: number of examples in each.
    seed: of the order.
    shuffle_buffer: examples held in memory at once. Half of it is for a group
      of shards, the other half for the next group. A group is as large as fits,
      and one shard at least, which is then shuffled in windows of that size.
    host: index of this host.
    num_hosts: number of hosts.

  Raises:
    UserError: if there is no example.
  """

  def __init__(
    self,
    files: Sequence[str],
    counts: Sequence[int],
    *,
    seed: int,
    shuffle_buffer: int,
    host: int = 0,
    num_hosts: int = 1,
  ):
    self.files = list(files)
    self.counts = np.asarray(counts, np.int64)
    self.total = int(self.counts.sum())
    if not self.total:
      raise UserError(
        f"{len(self.files)} shards hold no examples; expected at least one."
      )
    self._seed = seed
    self._host, self._num_hosts = host, num_hosts
    largest = int(self.counts.max())
    self._window = max(1, shuffle_buffer // 2)
    self._group_size = max(1, self._window // largest)
    # A group that does not fit goes out by small parts, since the window stays
    # full beside the part being made, the one that waits and the one in use.
    fits = largest <= self._window
    self._part = self._window if fits else max(1, shuffle_buffer // 8)

  def examples_before(self, epoch: int) -> int:
    """Returns how many examples this host reads before an epoch."""
    return -((self._host - epoch * self.total) // self._num_hosts)

  def examples(self, start: int) -> tf.data.Dataset:
    """Returns (position, serialized example) from position `start`, for ever.

    Args:
      start: number of examples that this host has already read.
    """
    epoch = (start * self._num_hosts + self._host) // self.total
    skip = start - self.examples_before(epoch)
    pieces = self._pieces(tf.constant(epoch, tf.int64))
    group = 0
    while skip >= (size := int(self._group(pieces, group).size.numpy().sum())):
      skip -= size
      group += 1
    first_group = tf.constant(group, tf.int64)
    parts = (
      tf.data.Dataset.counter(epoch)
      .flat_map(
        lambda number: self._read_epoch(
          number, tf.where(number > epoch, tf.zeros_like(number), first_group)
        )
      )
      .prefetch(1)
    )
    return parts.unbatch().skip(skip).enumerate(start)

  def _seed_of(self, epoch) -> tf.Tensor:
    return tf.stack([tf.cast(self._seed, tf.int64), epoch])

  def _range(self, epoch) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where this host's part of an epoch begins and ends."""
    hosts = tf.range(self._num_hosts, dtype=tf.int64)
    before = [
      -((hosts - number * self.total) // self._num_hosts)
      for number in (epoch, epoch + 1)
    ]
    ends = tf.cumsum(before[1] - before[0])
    begin = ends[self._host - 1] if self._host else tf.zeros([], tf.int64)
    return begin, ends[self._host]

  def _pieces(self, epoch) -> _Piece:
    """Returns what this host reads of an epoch, in order."""
    keys = tf.random.stateless_uniform(
      [len(self.files)], self._seed_of(epoch), alg="philox"
    )
    files = tf.argsort(keys, stable=True)
    sizes = tf.gather(tf.constant(self.counts), files)
    ends = tf.cumsum(sizes)
    low, high = self._range(epoch)
    begin = tf.maximum(ends - sizes, low)
    size = tf.minimum(ends, high) - begin
    mine = tf.where(size > 0)[:, 0]
    piece = _Piece(files, begin - (ends - sizes), size)
    return _Piece(*(tf.gather(column, mine) for column in piece))

  def _group(self, pieces: _Piece, group) -> _Piece:
    begin = group * self._group_size
    return _Piece(*(x[begin : begin + self._group_size] for x in pieces))

  def _read_epoch(self, epoch, first_group) -> tf.data.Dataset:
    """Returns parts of an epoch: a group each, or less if it does not fit."""
    pieces = self._pieces(epoch)
    groups = -(-tf.shape(pieces.size, tf.int64)[0] // self._group_size)
    return tf.data.Dataset.range(first_group, groups).flat_map(
      lambda group: self._read_group(
        epoch, group, self._group(pieces, group)
      ).batch(self._part)
    )

  def _read_group(self, epoch, group, pieces: _Piece) -> tf.data.Dataset:
    """Reads and shuffles one group of shards of an epoch."""
    paths = tf.gather(tf.constant(self.files), pieces.file)
    # Read in parallel, some records of a file lie ready beside the window's.
    files = min(self._group_size, _FILES_AT_ONCE)
    records = tf.data.Dataset.from_tensor_slices(
      (paths, pieces.begin, pieces.size)
    ).interleave(
      read_segment,
      cycle_length=files,
      block_length=_RECORDS_AT_ONCE,
      num_parallel_calls=files if files > 1 else None,
    )
    own_seed = tf.random.stateless_uniform(
      [2],
      tf.random.experimental.stateless_fold_in(self._seed_of(epoch), group),
      minval=1,  # two zeros would be a seed of TensorFlow's own choice
      maxval=tf.int64.max,
      dtype=tf.int64,
    )
    return _shuffled(records, self._window, own_seed)


def read_part(
  files: Sequence[str], counts: Sequence[int], begin: int, size: int
) -> tf.data.Dataset:
  """Reads `size` records of a row of shards from number `begin` on, in order.

  Fewer come where the row ends.
  """
  ends = np.cumsum(counts)
  starts = ends - counts
  first = np.clip(begin - starts, 0, counts)
  sizes = np.clip(begin + size - starts, 0, counts) - first
  (wanted,) = np.nonzero(sizes)  # others are not even opened
  paths = tf.constant([files[i] for i in wanted], tf.string)
  pieces = tf.data.Dataset.from_tensor_slices(
    (paths, first[wanted], sizes[wanted])
  )
  return pieces.flat_map(read_segment)


def _shuffled(records: tf.data.Dataset, window: int, seed) -> tf.data.Dataset:
  """Shuffles by a seed alone.

  `Dataset.shuffle` would mix TensorFlow's global seed into the order.
  """
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
