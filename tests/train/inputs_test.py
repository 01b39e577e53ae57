import logging
import types

import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.ops.errors import UserError
from nfnets_tf.train.inputs import DataWatch, Inputs


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Seconds:
  """Stands for `Waiting`: was waited for so long in each interval."""

  def __init__(self, *seconds):
    self._seconds = list(seconds)
    self._begun = False

  def take(self):
    self._begun = not self._begun
    return 0.0 if self._begun else self._seconds.pop(0)


class Bad:
  def collect(self):
    return {"of a kind": 3}

  def __str__(self):
    return "3 of a kind"


def run(waiting, unused, max_bad_share=0.01, costs=dict, fits=(0,)):
  clock = Clock()
  watch = DataWatch(
    waiting,
    costs=costs,
    faults=Bad(),
    max_bad_share=max_bad_share,
    clock=clock,
  )
  records = []
  for interval, share in enumerate(unused):
    if interval in fits:
      watch.on_train_begin()
    watch.on_epoch_begin(0)
    clock.now += 10
    records.append({"unused": share})
    watch.on_epoch_end(0, records[-1])
  return [record["waiting_for_data"] for record in records]


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
  with pytest.raises(UserError, match="max_bad_share = 2 cannot be used"):
    run(Seconds(), [], max_bad_share=2)


def test_batches_of_a_strategy(make_dataset):
  operations = [preprocess.Resize(image_size=8)]
  splits = [
    pipeline.Split(
      directory=make_dataset(name=name),
      split=name,
      num_classes=4,
      operations=operations,
    )
    for name in ("train", "heldout")
  ]
  job = types.SimpleNamespace(
    train_split=splits[0],
    heldout_split=splits[1],
    batch_size=8,
    seed=0,
    shuffle_buffer=20,
    max_bad_share=0.01,
  )
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  inputs = Inputs(job, strategy, *(split.index() for split in splits))
  images, labels, weights = next(iter(inputs.training(start_step=3)))
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
  watch.on_epoch_begin(0)
  watch.on_epoch_end(0, logs := {"unused": 0.0})
  assert 0.0 <= logs["waiting_for_data"] <= 1.0


class Noted:
  """Stands for a split; notes what it is asked for."""

  def __init__(self):
    self.asked = []
    self.faults = Bad()

  def training_batches(self, index, **options):
    self.asked.append(options)
    return tf.data.Dataset.from_tensors(0).repeat()


def test_every_host_is_told_its_part_and_the_runs_settings():
  split = Noted()
  job = types.SimpleNamespace(
    train_split=split,
    batch_size=24,
    seed=7,
    shuffle_buffer=20,
    max_bad_share=0.25,
  )
  contexts = [tf.distribute.InputContext(3, host, 6) for host in range(3)]

  class Hosts:
    def distribute_datasets_from_function(self, make):
      return [make(context) for context in contexts]

  inputs = Inputs(job, Hosts(), None, None)
  inputs.training(start_step=5)
  assert split.asked == [
    {
      "start_step": 5,
      "shuffle_buffer": 20,
      "seed": 7,
      "host_batch": 8,
      "replicas": 2,
      "host": host,
      "num_hosts": 3,
    }
    for host in range(3)
  ]
  watch = inputs.watch()
  watch.on_epoch_begin(0)
  with pytest.raises(UserError, match="max_bad_share = 25.00%"):
    watch.on_epoch_end(0, {"unused": 0.26})
