import time

import tensorflow as tf

from nfnets_tf.data import pipeline, preprocess
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
