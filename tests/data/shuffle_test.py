import os
import time

import pytest
import tensorflow as tf

from nfnets_tf.data import shuffle as shuffle_module
from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.shuffle import ShardedShuffle, read_range
from nfnets_tf.data.tfrecords import read_segment
from nfnets_tf.errors import UserError
from tests.support.datasets import write_small_dataset

EXAMPLES = 50


@pytest.fixture(scope="module")
def five_shards(tmp_path_factory):
  """50 examples; shard s of 5 holds s, s + 5, s + 10, ..."""
  directory = str(tmp_path_factory.mktemp("five") / "data")
  return write_small_dataset(directory, EXAMPLES, train_shards=5)


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp("one") / "data")
  return write_small_dataset(directory, EXAMPLES, train_shards=1)


def make(directory, **options):
  info = read_split_info(directory, "train")
  options = {"seed": 1, "shuffle_buffer": 25, **options}
  return ShardedShuffle(info.files, info.counts, **options)


def read(shuffle, count, start=0):
  """Returns the numbers of the next examples, and checks their positions."""
  examples = shuffle.examples(start).take(count).batch(count)
  ((positions, records),) = examples
  assert positions.numpy().tolist() == list(range(start, start + count))
  feature = {"image/filename": tf.io.FixedLenFeature([], tf.string)}
  names = tf.io.parse_example(records, feature)["image/filename"].numpy()
  return [int(name.split(b".")[0]) for name in names]


@pytest.fixture(scope="module")
def order(five_shards):
  """The first 160 examples, of a little more than three epochs."""
  return read(make(five_shards), 160)


def test_order_is_pinned(order):
  """A change here would reorder the data of runs that are resumed."""
  assert order[:12] == [14, 19, 39, 34, 4, 24, 29, 44, 9, 49, 28, 18]
  assert order[50:62] == [30, 40, 45, 15, 10, 35, 5, 0, 20, 25, 13, 3]


def test_each_epoch_has_every_example_once_in_a_new_order(order):
  epochs = [order[start : start + EXAMPLES] for start in (0, 50, 100)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(EXAMPLES))
  assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_the_seed_but_not_on_tensorflows(five_shards, order):
  for seed in (1, 2):
    tf.random.set_seed(seed)
    assert read(make(five_shards), 70) == order[:70]
  assert read(make(five_shards, seed=2), 70) != order[:70]


@pytest.mark.parametrize("start", [1, 10, 49, 50, 77, 120])
def test_resumes_the_same_order_at_any_example(five_shards, order, start):
  assert read(make(five_shards), 160 - start, start) == order[start:]


@pytest.mark.parametrize("buffer", [1, 30, 1000])
def test_any_group_size_keeps_epochs_and_resumes(five_shards, buffer):
  shuffle = make(five_shards, shuffle_buffer=buffer)
  order = read(shuffle, 100)
  assert sorted(order[:50]) == sorted(order[50:]) == list(range(EXAMPLES))
  assert read(shuffle, 30, 70) == order[70:]


def test_shuffles_a_group_over_all_its_shards(five_shards):
  shards = [n % 5 for n in read(make(five_shards, shuffle_buffer=1000), 50)]
  assert all(len(set(shards[i : i + 15])) >= 4 for i in range(0, 45, 15))


def test_permutes_the_groups_of_an_epoch_differently(five_shards):
  epoch = read(make(five_shards, shuffle_buffer=10), 50)
  # Positions within a shard, group by group.
  groups = [tuple(n // 5 for n in epoch[i : i + 10]) for i in range(0, 50, 10)]
  assert all(sorted(group) == list(range(10)) for group in groups)
  assert len(set(groups)) == 5


def test_permutes_a_group_differently_every_epoch(one_shard):
  epochs = read(make(one_shard, shuffle_buffer=1000), 100)
  assert epochs[:50] != epochs[50:]


def test_shuffles_oversized_shards_in_windows(one_shard):
  order = read(make(one_shard, shuffle_buffer=10), 50)
  assert sorted(order) == list(range(EXAMPLES)) != order
  assert all(number < turn + 5 for turn, number in enumerate(order))


@pytest.mark.parametrize("examples, streams", [(50, 2), (50, 7), (3, 7)])
def test_streams_share_every_example_once(
  make_dataset, five_shards, examples, streams
):
  # 5 shards: 7 streams cut some of them; 3 examples are fewer than streams.
  directory = five_shards
  if examples != EXAMPLES:
    directory = make_dataset(train=examples, train_shards=examples)
  shuffles = [
    make(directory, stream=stream, num_streams=streams)
    for stream in range(streams)
  ]
  for epoch in range(5):
    begins = [shuffle.examples_before(epoch) for shuffle in shuffles]
    assert max(begins) - min(begins) <= 1
  numbers = [
    read(shuffle, shuffle.examples_before(3) - begin, begin)
    for shuffle in shuffles
    if shuffle.examples_before(3) > (begin := shuffle.examples_before(2))
  ]
  assert sorted(sum(numbers, [])) == list(range(examples))


def test_stream_resumes_and_changes_examples_every_epoch(
  make_dataset,
):
  shuffle = make(make_dataset(train=51), stream=1, num_streams=4)
  order = read(shuffle, 60)
  for start in (1, 20, 39):
    assert read(shuffle, 60 - start, start) == order[start:]
  assert set(order[:12]) != set(order[13:25])


@pytest.fixture
def records_read(monkeypatch):
  """Counts the records read, inside the dataset."""
  number = tf.Variable(0, dtype=tf.int64)

  def counted(*segment):
    def count(record):
      with tf.control_dependencies([number.assign_add(1)]):
        return tf.identity(record)

    return read_segment(*segment).map(count)

  monkeypatch.setattr(shuffle_module, "read_segment", counted)
  return number


def test_reads_the_next_group_ahead(five_shards, records_read):
  examples = iter(make(five_shards, shuffle_buffer=20).examples(0))
  next(examples)
  deadline = time.monotonic() + 30
  while records_read.numpy() < 20 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert records_read.numpy() == 20  # ten of the first group, ten of the next


@pytest.mark.parametrize("shards", [5, 1])  # 1 is oversized
def test_memory_is_bounded_by_the_shuffle_buffer(
  five_shards, one_shard, records_read, shards
):
  directory = five_shards if shards == 5 else one_shard
  examples = iter(make(directory, shuffle_buffer=24).examples(0))
  held = []
  for used in range(110):
    held.append(records_read.numpy() - used)
    next(examples)
    time.sleep(0.005)  # lets it read as far ahead as it would
  assert 12 < max(held) <= 24


def test_rejects_shards_without_examples():
  with pytest.raises(UserError, match="2 shards hold no examples"):
    ShardedShuffle(["a", "b"], [0, 0], seed=0, shuffle_buffer=1)


@pytest.mark.parametrize("begin, size", [(0, 50), (7, 20), (45, 10), (60, 5)])
def test_read_range_is_a_slice_of_all_records(five_shards, begin, size):
  info = read_split_info(five_shards, "train")
  records = list(tf.data.TFRecordDataset(list(info.files)).as_numpy_iterator())
  part = read_range(info.files, info.counts, begin, size)
  assert list(part.as_numpy_iterator()) == records[begin : begin + size]


def test_read_range_does_not_open_other_shards(five_shards):
  info = read_split_info(five_shards, "train")
  files = (*info.files[:1], *["nowhere"] * 4)
  assert len(list(read_range(files, info.counts, 0, 9))) == 9
  # An empty shard has no first record.
  counts = (*info.counts[:1], 0, 0, 0, 0)
  assert len(list(read_range(files, counts, 0, 50))) == 10


def test_missing_shard_raises_instead_of_waiting(make_dataset):
  shuffle = make(make_dataset(train=50))
  os.remove(shuffle.files[3])
  with pytest.raises(tf.errors.NotFoundError, match="train-00003"):
    read(shuffle, 50)
