import functools
import logging
import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.data.profiling import WaitTimer, profile_stages
from nfnets_tf.errors import UserError
from nfnets_tf.train import inputs as inputs_lib
from nfnets_tf.train.inputs import InputMonitor, Inputs, streams_of_host
from nfnets_tf.train.run_config import DataConfig
from tests.support.datasets import write_small_dataset


class FakeClock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class FakeWaitTimer:
  """Reports given seconds of waiting, one for each interval."""

  def __init__(self, *seconds):
    self._seconds = list(seconds)
    self._started = False

  def reset(self):
    self._started = not self._started
    return 0.0 if self._started else self._seconds.pop(0)


class FakeInvalidRecords:
  def collect(self):
    return {"of a kind": 3}

  def __str__(self):
    return "3 of a kind"


def run_intervals(
  waits, invalid_fractions, *, bound=0.01, profile=dict, iterators=(0,)
):
  """Runs intervals of 10 s; returns their input_wait_fraction."""
  clock = FakeClock()
  monitor = InputMonitor(
    FakeWaitTimer(*waits),
    profile=profile,
    invalid_records=FakeInvalidRecords(),
    max_invalid_fraction=bound,
    clock=clock,
  )
  records = []
  for interval, fraction in enumerate(invalid_fractions):
    if interval in iterators:
      monitor.start()
    monitor.start_interval()
    clock.now += 10
    records.append({"invalid_examples": fraction})
    monitor.end_interval(records[-1])
  return [record["input_wait_fraction"] for record in records]


def test_logs_wait_fraction_of_each_interval():
  fractions = run_intervals(
    [0.1, 0.4, 30.0], [0.0] * 3, profile=lambda: {"x": 1.0}
  )
  assert fractions == pytest.approx([0.01, 0.04, 1.0])


def test_reports_slowest_stage_once_after_buffers_fill(caplog):
  costs = {"reading": 0.001, "RandAugment": 0.004}
  options = {"profile": lambda: costs}
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    run_intervals([5.0], [0.0], **options)
    run_intervals([5.0, 0.1, 5.0], [0.0] * 3, iterators=(0, 2), **options)
    assert not caplog.messages
    run_intervals([0.1, 0.6, 0.9], [0.0] * 3, **options)
  (message,) = caplog.messages
  assert "6 % of the last interval; slowest is RandAugment" in message
  assert "reading 1.00, RandAugment 4.00" in message


def test_fails_on_too_many_invalid_examples():
  run_intervals([0, 0], [0.0, 0.02])  # 1 % in all
  with pytest.raises(UserError, match="1.50% of the images .* 3 of a kind"):
    run_intervals([0, 0], [0.01, 0.02])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp("inputs") / "data")
  write_small_dataset(directory)
  train_split, heldout_split = (
    pipeline.Split(
      directory=directory,
      split=name,
      num_classes=4,
      transforms=[preprocessing.Resize(image_size=8)],
    )
    for name in ("train", "heldout")
  )
  return DataConfig(
    train_split=train_split,
    heldout_split=heldout_split,
    prepare=None,
    num_classes=4,
    num_examples=50,
    batch_size=8,
    shuffle_buffer=20,
    max_invalid_fraction=0.01,
    num_data_streams=None,
  )


def make_inputs(config, strategy, num_data_streams=None):
  infos = config.train_split.read_info(), config.heldout_split.read_info()
  return Inputs(
    config, strategy, *infos, seed=0, num_data_streams=num_data_streams
  )


def test_batches_of_a_strategy(config):
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )
  inputs = make_inputs(config, strategy)
  images, labels, weights = next(iter(inputs.training(start=3)))
  assert inputs.num_data_streams == 1
  for tensor in (images, labels, weights):
    replicas = strategy.experimental_local_results(tensor)
    assert [len(replica) for replica in replicas] == [4, 4]
  examples = sum(
    float(tf.reduce_sum(replica))
    for _, _, weights in inputs.heldout()
    for replica in strategy.experimental_local_results(weights)
  )
  assert examples == 13
  monitor = inputs.monitor()
  monitor.start_interval()
  monitor.end_interval(record := {"invalid_examples": 0.0})
  assert 0.0 <= record["input_wait_fraction"] <= 1.0


def test_names_the_slowest_stage_of_the_split(config, monkeypatch, caplog):
  measure = functools.partial(profile_stages, seconds=0.01)
  monkeypatch.setattr(inputs_lib, "profile_stages", measure)
  monkeypatch.setattr(WaitTimer, "reset", lambda timer: 1e9)
  monitor = make_inputs(config, FakeHosts(1, 1)).monitor()
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    for _ in range(2):  # the first interval fills buffers
      monitor.start_interval()
      monitor.end_interval({"invalid_examples": 0.0})
  (message,) = caplog.messages
  assert re.search(r"reading \d.*, Resize \d", message)


class FakeHosts:
  """A strategy that makes the datasets of several hosts."""

  def __init__(self, hosts, replicas):
    self._hosts, self._replicas = hosts, replicas

  def distribute_datasets_from_function(self, make_dataset):
    return [
      make_dataset(tf.distribute.InputContext(self._hosts, i, self._replicas))
      for i in range(self._hosts)
    ]


def example_order(config, hosts, replicas, streams, start=5, steps=4):
  """Returns the numbers of the images of global batches, in their order."""
  strategy = FakeHosts(hosts, replicas)
  datasets = make_inputs(config, strategy, streams).training(start)
  rows = [
    [
      image[0, 0, 0]
      for images, *_ in batches.take(replicas // hosts * steps)
      for image in images.numpy()
    ]
    for batches in datasets
  ]
  return np.concatenate(
    [np.reshape(row, [steps, -1]) for row in rows], axis=1
  ).tolist()


@pytest.fixture(scope="module")
def order_of_hosts(config):
  """Returns a function: the order of so many hosts, each with a stream."""
  return functools.cache(
    lambda hosts: example_order(config, hosts, hosts, None)
  )


@pytest.mark.parametrize(
  "streams, hosts, replicas_per_host",
  [
    (2, 1, 1),
    (2, 1, 4),
    (2, 2, 2),
    *(
      pytest.param(4, *hosts, marks=pytest.mark.soak)
      for hosts in [(1, 1), (1, 2), (2, 2), (4, 2)]
    ),
  ],
)
def test_order_does_not_depend_on_hosts(
  config, order_of_hosts, streams, hosts, replicas_per_host
):
  order = example_order(config, hosts, hosts * replicas_per_host, streams)
  assert order == order_of_hosts(streams)


def test_order_depends_on_number_of_streams(config, order_of_hosts):
  assert example_order(config, 1, 1, 1) != order_of_hosts(2)


def test_refuses_streams_that_do_not_divide(config):
  with pytest.raises(UserError, match="4 data streams, which 3 hosts"):
    streams_of_host(0, 3, 4)
  streams = [list(streams_of_host(host, 2, 4)) for host in (0, 1)]
  assert streams == [[0, 1], [2, 3]]
  with pytest.raises(UserError, match="BATCH_SIZE = 8 does not divide among 3"):
    make_inputs(config, FakeHosts(1, 1), 3).training(0)


@pytest.mark.parametrize("streams", [1, 2])
def test_names_match_images_of_batches(config, streams):
  pixels = example_order(config, 1, 1, streams, start=4, steps=2)
  names = make_inputs(config, FakeHosts(1, 1), streams).names(4, 6)
  assert [number for number, _ in names] == [4] * 8 + [5] * 8
  assert [name for _, name in names] == [
    f"{pixel}.png" for row in pixels for pixel in row
  ]
