"""The order of examples: a function of (seed, epoch, step).

Every epoch the shards are permuted and cut into groups that fit the shuffle
buffer; a group is read whole, shuffled, and followed by the next. Nothing but
the number of examples already seen is needed to go on from any point, and going
on reads one group at most.
"""

from collections.abc import Sequence

import tensorflow as tf

_FILES_AT_ONCE = 16


class ShardOrder:
  """The part of every epoch that one host reads, in order.

  With at least as many files as hosts each host reads every n-th file; with
  fewer, every host reads all files and keeps every n-th record.

  Args:
    files: paths of all shards.
    counts: number of examples in each.
    seed: of the order.
    shuffle_buffer: examples held in memory at once; a group of shards is as
      large as fits, and one shard at least.
    host: index of this host.
    num_hosts: number of hosts.
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
    self._split_records = len(files) < num_hosts
    self._host, self._num_hosts = host, num_hosts
    if self._split_records:
      self.files = list(files)
      self.counts = [(n - host + num_hosts - 1) // num_hosts for n in counts]
    else:
      self.files = list(files[host::num_hosts])
      self.counts = list(counts[host::num_hosts])
    self._seed = seed
    self._group_size = max(1, shuffle_buffer // max(1, *self.counts))
    self._num_groups = -(-len(self.files) // self._group_size)
    largest = sorted(self.counts)[-self._group_size :]
    self._buffer = max(1, sum(largest))

  @property
  def num_examples(self) -> int:
    """Examples that this host reads in an epoch."""
    return sum(self.counts)

  def examples(self, start: int) -> tf.data.Dataset:
    """Returns (position, serialized example) from position `start`, for ever.

    Args:
      start: number of examples that this host has already read.
    """
    epoch, skip = divmod(start, self.num_examples)
    files = self._file_order(epoch).numpy()
    group = 0
    while skip >= (size := self._examples_in(files, group)):
      skip -= size
      group += 1
    first = self._group(tf.constant(epoch, tf.int64), group).skip(skip)
    following = tf.data.Dataset.counter(epoch * self._num_groups + group + 1)
    rest = following.flat_map(
      lambda n: self._group(n // self._num_groups, n % self._num_groups)
    )
    return first.concatenate(rest).enumerate(start)

  def _seed_of(self, epoch) -> tf.Tensor:
    return tf.stack([tf.cast(self._seed, tf.int64), tf.cast(epoch, tf.int64)])

  def _file_order(self, epoch) -> tf.Tensor:
    return _permutation(len(self.files), self._seed_of(epoch))

  def _examples_in(self, files, group: int) -> int:
    begin = group * self._group_size
    return sum(self.counts[i] for i in files[begin : begin + self._group_size])

  def _group(self, epoch, group) -> tf.data.Dataset:
    """Reads and shuffles one group of shards of an epoch."""
    begin = group * self._group_size
    chosen = self._file_order(epoch)[begin : begin + self._group_size]
    files = tf.data.Dataset.from_tensor_slices(
      tf.gather(tf.constant(self.files), chosen)
    )
    records = files.interleave(
      self._read,
      cycle_length=self._group_size,
      num_parallel_calls=min(self._group_size, _FILES_AT_ONCE),
      deterministic=True,
    )
    own_seed = tf.random.experimental.stateless_fold_in(
      self._seed_of(epoch), tf.cast(group, tf.int64)
    )

    def shuffle(group):
      return tf.gather(group, _permutation(tf.shape(group)[0], own_seed))

    # tf.data's own shuffle would mix TensorFlow's global seed into the order.
    return records.batch(self._buffer).map(shuffle).unbatch()

  def _read(self, file) -> tf.data.Dataset:
    records = tf.data.TFRecordDataset(file)
    if self._split_records:
      records = records.shard(self._num_hosts, self._host)
    return records


def _permutation(size, seed) -> tf.Tensor:
  """Returns a permutation of range(size) that depends on the seed alone."""
  keys = tf.random.stateless_uniform([size], seed, alg="philox")
  return tf.argsort(keys, stable=True)
