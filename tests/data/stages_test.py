import os
import time

import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocess, stages
from nfnets_tf.data.stages import stage_costs


class Slow:
  def __call__(self, image, seed):
    del seed
    wait = tf.numpy_function(lambda: time.sleep(0.01) or 0, [], tf.int64)
    with tf.control_dependencies([wait]):
      return tf.identity(image)


def test_the_slow_stage_costs_most(make_dataset):
  split = pipeline.Split(
    directory=make_dataset(),
    split="train",
    num_classes=4,
    operations=[preprocess.Flip(), preprocess.Resize(image_size=8)],
    mixed_operations=[Slow()],
  )
  costs = stage_costs(split, split.index(), seconds=0.3)
  assert list(costs) == ["reading", "Flip", "Resize", "Slow"]
  assert max(costs, key=costs.get) == "Slow"
  # 10 ms each, on all cores at once.
  assert 0.010 / 256 < costs["Slow"] < 0.05


def test_stages_cost_what_they_add(make_dataset, monkeypatch):
  split = pipeline.Split(
    directory=make_dataset(),
    split="train",
    num_classes=4,
    operations=[preprocess.Flip(), preprocess.Resize(image_size=8)],
  )
  measured = iter([6.4, 0.5, 0.7])  # of a batch of 64, then of single images
  monkeypatch.setattr(stages, "_seconds_each", lambda *_: next(measured))
  assert stage_costs(split, split.index()) == pytest.approx(
    {"reading": 0.1, "Flip": 0.5, "Resize": 0.2}
  )


def test_a_lost_shard_is_an_error_and_no_endless_wait(make_dataset):
  split = pipeline.Split(
    directory=make_dataset(),
    split="train",
    num_classes=4,
    operations=[preprocess.Resize(image_size=8)],
  )
  index = split.index()
  for path in index.files:
    os.remove(path)
  with pytest.raises(tf.errors.NotFoundError):
    stage_costs(split, index, seconds=0.1)
