import collections

import pytest
import tensorflow as tf

from nfnets_tf.data.order import ShardOrder
from nfnets_tf.data.records import read_index


def make(directory, **options):
  index = read_index(directory, "train")
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


@pytest.mark.parametrize("hosts", [2, 3, 5, 7])
def test_hosts_share_every_example_once(make_dataset, hosts):
  # 5 shards: with 7 hosts the records are shared out instead of the files.
  directory = make_dataset(train=50, train_shards=5)
  seen = collections.Counter()
  for host in range(hosts):
    order = make(directory, host=host, num_hosts=hosts)
    epoch = names(order, order.num_examples)
    assert names(order, order.num_examples, order.num_examples) != epoch
    seen.update(epoch)
  assert seen == {f"{i}.png": 1 for i in range(50)}


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
