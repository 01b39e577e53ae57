import logging

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.errors import UserError
from nfnets_tf.train.inputs import DataWatch, Inputs, streams_of_host
from nfnets_tf.train.run_config import DataConfig


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Seconds:
  """Stands for `WaitTimer`: was waited for so long in each interval."""

  def __init__(self, *seconds):
    self._seconds = list(seconds)
    self._begun = False

  def reset(self):
    self._begun = not self._begun
    return 0.0 if self._begun else self._seconds.pop(0)


class Bad:
  def collect(self):
    return {"of a kind": 3}

  def __str__(self):
    return "3 of a kind"


def run(waiting, unused, max_invalid_fraction=0.01, costs=dict, fits=(0,)):
  clock = Clock()
  watch = DataWatch(
    waiting,
    costs=costs,
    invalid_records=Bad(),
    max_invalid_fraction=max_invalid_fraction,
    clock=clock,
  )
  records = []
  for interval, share in enumerate(unused):
    if interval in fits:
      watch.start()
    watch.start_interval()
    clock.now += 10
    records.append({"invalid_examples": share})
    watch.end_interval(records[-1])
  return [record["input_wait_fraction"] for record in records]


def test_the_share_of_an_interval_is_logged():
  shares = run(Seconds(0.1, 0.4, 30.0), [0.0] * 3, costs=lambda: {"x": 1.0})
  assert shares == pytest.approx([0.01, 0.04, 1.0])


def test_the_slow_stage_is_told_once_and_not_of_the_first_interval(caplog):
  costs = {"reading": 0.001, "RandAugment": 0.004}
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    run(Seconds(5.0), [0.0], costs=lambda: costs)
    run(Seconds(5.0, 0.1, 5.0), [0.0] * 3, costs=lambda: costs, fits=(0, 2))
    assert not caplog.messages
    run(Seconds(0.1, 0.6, 0.9), [0.0] * 3, costs=lambda: costs)
  (message,) = caplog.messages
  assert "6 % of the last interval; slowest is RandAugment" in message
  assert "reading 1.00, RandAugment 4.00" in message


def test_more_bad_records_than_the_bound_end_the_run():
  run(Seconds(0, 0), [0.0, 0.02])  # 1 % in all
  with pytest.raises(UserError, match="1.50% of the images .* 3 of a kind"):
    run(Seconds(0, 0), [0.01, 0.02])


@pytest.fixture
def job(make_dataset):
  transforms = [preprocessing.Resize(image_size=8)]
  splits = [
    pipeline.Split(
      directory=make_dataset(name=name),
      split=name,
      num_classes=4,
      transforms=transforms,
    )
    for name in ("train", "heldout")
  ]
  return DataConfig(
    train_split=splits[0],
    heldout_split=splits[1],
    prepare=None,
    num_classes=4,
    num_examples=50,
    batch_size=8,
    shuffle_buffer=20,
    max_invalid_fraction=0.01,
    num_data_streams=None,
  )


def inputs_of(job, strategy, parts=None):
  indexes = job.train_split.read_info(), job.heldout_split.read_info()
  return Inputs(job, strategy, *indexes, seed=0, num_data_streams=parts)


def two_replicas():
  return tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )


def test_batches_of_a_strategy(job):
  strategy = two_replicas()
  inputs = inputs_of(job, strategy)
  images, labels, weights = next(iter(inputs.training(start=3)))
  assert inputs.num_data_streams == 1
  for part in (images, labels, weights):
    shares = strategy.experimental_local_results(part)
    assert [len(share) for share in shares] == [4, 4]
  counted = sum(
    float(tf.reduce_sum(share))
    for _, _, weights in inputs.heldout()
    for share in strategy.experimental_local_results(weights)
  )
  assert counted == 13
  watch = inputs.watch()
  watch.start_interval()
  watch.end_interval(logs := {"invalid_examples": 0.0})
  assert 0.0 <= logs["input_wait_fraction"] <= 1.0


class Hosts:
  """Gives a pipeline's maker the contexts of several hosts."""

  def __init__(self, hosts, replicas):
    self._hosts, self._replicas = hosts, replicas

  def distribute_datasets_from_function(self, make):
    return [
      make(tf.distribute.InputContext(self._hosts, host, self._replicas))
      for host in range(self._hosts)
    ]


def order_of(job, hosts, replicas, parts, start=5, steps=9):
  """Returns the numbers of the images of whole batches, in their order."""
  found = inputs_of(job, Hosts(hosts, replicas), parts).training(start)
  each = replicas // hosts
  rows = [
    [
      image[0, 0, 0]
      for images, *_ in batches.take(each * steps)
      for image in images.numpy()
    ]
    for batches in found
  ]
  return np.concatenate(
    [np.reshape(row, [steps, -1]) for row in rows], axis=1
  ).tolist()


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("each", [1, 2])
def test_the_order_is_of_the_parts_and_not_of_the_hosts(job, hosts, each):
  want = order_of(job, 4, 4, None)
  assert order_of(job, hosts, hosts * each, 4) == want
  assert order_of(job, 1, 1, 2) != want  # of fewer parts it is another one


def test_parts_that_do_not_fit(job):
  with pytest.raises(UserError, match="4 data streams, which 3 hosts"):
    streams_of_host(0, 3, 4)
  assert [list(streams_of_host(host, 2, 4)) for host in (0, 1)] == [
    [0, 1],
    [2, 3],
  ]
  with pytest.raises(UserError, match="BATCH_SIZE = 8 does not divide among 3"):
    inputs_of(job, Hosts(1, 1), 3).training(0)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_names_of_a_batch_are_those_of_its_images(job, parts):
  pixels = order_of(job, 1, 1, parts, start=4, steps=2)
  names = inputs_of(job, Hosts(1, 1), parts).names(4, 6)
  assert [number for number, _ in names] == [4] * 8 + [5] * 8
  assert [name for _, name in names] == [
    f"{pixel}.png" for row in pixels for pixel in row
  ]
