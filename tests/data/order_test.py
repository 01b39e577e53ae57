import os
import time

import pytest
import tensorflow as tf

from nfnets_tf.data import order as order_module
from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.order import (
  ShardOrder,
  read_part,
)
from nfnets_tf.data.tfrecords import read_segment
from nfnets_tf.errors import UserError


def make(directory, **options):
  index = read_split_info(directory, "train")
  options = {"seed": 1, "shuffle_buffer": 25, **options}
  return ShardOrder(index.files, index.counts, **options)


def take(order, count, start=0):
  """Returns [(position, file name of the image)]."""
  names = []
  for position, serialized in order.examples(start).take(count):
    example = tf.train.Example.FromString(serialized.numpy())
    value = example.features.feature["image/filename"].bytes_list.value[0]
    names.append((int(position), value.decode()))
  return names


def names(order, count, start=0):
  return [name for _, name in take(order, count, start)]


def test_each_example_once_an_epoch_in_another_order(make_dataset):
  order = make(make_dataset(train=50))
  epochs = [names(order, 50, start) for start in (0, 50, 100)]
  for epoch in epochs:
    assert sorted(epoch) == sorted(f"{i}.png" for i in range(50))
  assert epochs[0] != epochs[1] != epochs[2]


def test_order_is_a_function_of_the_seed_not_of_tensorflows(make_dataset):
  directory = make_dataset()
  tf.random.set_seed(1)
  first = names(make(directory), 70)
  tf.random.set_seed(2)
  assert names(make(directory), 70) == first
  assert names(make(directory, seed=2), 70) != first


@pytest.mark.parametrize("start", [1, 9, 10, 20, 49, 50, 51, 77, 120])
def test_going_on_anywhere_continues_the_same_order(make_dataset, start):
  order = make(make_dataset())
  assert take(order, 160 - start, start) == take(order, 160)[start:]


@pytest.mark.parametrize("buffer", [1, 10, 30, 1000])
def test_groups_of_any_size_keep_the_law(make_dataset, buffer):
  order = make(make_dataset(), shuffle_buffer=buffer)
  seen = names(order, 100)
  assert sorted(seen[:50]) == sorted(seen[50:])
  assert names(order, 30, 70) == seen[70:]


def test_a_group_is_shuffled_over_all_its_shards(make_dataset):
  order = make(make_dataset(train=50), shuffle_buffer=1000)
  # Shard s of 5 holds s, s + 5, s + 10, ...
  shards = [int(name.split(".")[0]) % 5 for name in names(order, 50)]
  assert all(len(set(shards[i : i + 15])) >= 4 for i in range(0, 45, 15))


@pytest.mark.parametrize("examples", [50, 3])
@pytest.mark.parametrize("hosts", [2, 7])
def test_hosts_share_every_example_once(make_dataset, hosts, examples):
  # 5 shards: with 7 hosts some are cut; 3 examples do not go round.
  directory = make_dataset(train=examples, train_shards=min(5, examples))
  orders = [make(directory, host=h, num_hosts=hosts) for h in range(hosts)]
  for epoch in range(3):
    bounds = [
      (o.examples_before(epoch), o.examples_before(epoch + 1)) for o in orders
    ]
    assert max(end for _, end in bounds) - min(end for _, end in bounds) <= 1
    parts = [
      names(o, end - begin, begin) for o, (begin, end) in zip(orders, bounds)
    ]
    assert sorted(sum(parts, [])) == sorted(f"{i}.png" for i in range(examples))


def test_hosts_read_other_parts_in_another_epoch(make_dataset):
  order = make(make_dataset(train=50), host=1, num_hosts=2)
  assert set(names(order, 25)) != set(names(order, 25, 25))


def test_a_host_goes_on_in_the_middle_of_its_part(make_dataset):
  order = make(make_dataset(train=51), host=1, num_hosts=4)
  seen = take(order, 60)
  for start in range(1, 60, 19):
    assert take(order, 60 - start, start) == seen[start:]


def test_a_shard_larger_than_the_buffer_is_shuffled_in_windows(make_dataset):
  order = make(make_dataset(train=50, train_shards=1), shuffle_buffer=10)
  places = [int(name.split(".")[0]) for name in names(order, 50)]
  assert sorted(places) == list(range(50)) != places
  assert all(place < turn + 5 for turn, place in enumerate(places))


@pytest.fixture
def records_read(monkeypatch):
  """Counts the records that are read, in the data set itself."""
  number = tf.Variable(0, dtype=tf.int64)

  def counted(*piece):
    def count(record):
      with tf.control_dependencies([number.assign_add(1)]):
        return tf.identity(record)

    return read_segment(*piece).map(count)

  monkeypatch.setattr(order_module, "read_segment", counted)
  return number


def test_the_next_group_is_read_while_the_last_one_is_used(
  make_dataset, records_read
):
  order = make(make_dataset(train=50, train_shards=5), shuffle_buffer=20)
  examples = iter(order.examples(0))
  next(examples)
  deadline = time.monotonic() + 30
  while records_read.numpy() < 20 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert records_read.numpy() == 20  # ten of the first group, ten of the next


@pytest.mark.parametrize("shards", [5, 1])  # 1 does not fit
def test_no_more_examples_are_held_than_the_buffer_allows(
  make_dataset, records_read, shards
):
  directory = make_dataset(train=50, train_shards=shards)
  examples = iter(make(directory, shuffle_buffer=24).examples(0))
  held = []
  for used in range(110):
    held.append(records_read.numpy() - used)
    next(examples)
    time.sleep(0.005)  # lets it read as far ahead as it would
  assert 12 < max(held) <= 24


def test_a_row_of_empty_shards_is_refused():
  with pytest.raises(UserError, match="2 shards hold no examples"):
    ShardOrder(["a", "b"], [0, 0], seed=0, shuffle_buffer=1)


def test_groups_of_an_epoch_are_permuted_differently(make_dataset):
  order = make(make_dataset(train=50, train_shards=5), shuffle_buffer=10)
  epoch = names(order, 50)
  # Shard s holds s, s + 5, ...: the place within its shard, by group.
  places = [
    tuple(int(name.split(".")[0]) // 5 for name in epoch[i : i + 10])
    for i in range(0, 50, 10)
  ]
  assert all(sorted(group) == list(range(10)) for group in places)
  assert len(set(places)) == 5


def test_a_group_is_permuted_differently_in_another_epoch(make_dataset):
  order = make(make_dataset(train=50, train_shards=1), shuffle_buffer=1000)
  assert names(order, 50) != names(order, 50, 50)


@pytest.mark.parametrize("begin, size", [(0, 50), (7, 20), (45, 10), (60, 5)])
def test_a_part_of_a_row_of_shards(make_dataset, begin, size):
  index = read_split_info(make_dataset(train=50), "train")
  records = list(tf.data.TFRecordDataset(list(index.files)).as_numpy_iterator())
  part = read_part(index.files, index.counts, begin, size)
  assert list(part.as_numpy_iterator()) == records[begin : begin + size]


def test_shards_outside_of_a_part_are_not_opened(make_dataset):
  index = read_split_info(make_dataset(train=50), "train")
  expected = list(read_part(index.files, index.counts, 0, 9))
  files = (*index.files[:1], *["nowhere"] * 4)
  assert len(list(read_part(files, index.counts, 0, 9))) == len(expected) == 9
  # An empty shard has no first record.
  counts = (*index.counts[:1], 0, 0, 0, 0)
  assert len(list(read_part(files, counts, 0, 50))) == 10


def test_a_lost_shard_is_an_error_and_no_endless_wait(make_dataset):
  directory = make_dataset(train=50)
  order = make(directory)
  os.remove(order.files[3])
  with pytest.raises(tf.errors.NotFoundError, match="train-00003"):
    take(order, 50)
