"""Times variants of a training step, in turn, on one batch of noise."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import numpy as np
from absl import flags

from benchmarks.timing import (
  median_ratio,
  noise,
  seconds_side_by_side,
  train_steps,
)
from nfnets_tf.keras_api import keras
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Pixels per side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 20, "Images per step.")
_POLICY = flags.DEFINE_string("policy", "float32", "Keras' precision policy.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Steps to time.")


def compare(models: Mapping[str, Callable[[], Classifier]]) -> dict[str, float]:
  """Prints the milliseconds of a step of each model.

  Steps are complete: AGC, momentum, decay, averages of the weights, metrics.

  Args:
    models: {name: function that builds the network and its classifier, under
      the policy of the flags}; the first is what the others are compared to.

  Returns:
    {NAME_over_FIRST: median ratio of their seconds}.
  """
  keras.mixed_precision.set_global_policy(_POLICY.value)
  images = noise(_BATCH_SIZE.value, _IMAGE_SIZE.value)
  labels = np.zeros([len(images)], np.int32)
  steps = {}
  for name, build in models.items():
    model = build()
    model.compile(SGD(0.1))
    steps[name] = train_steps(model, images, labels)
  seconds = seconds_side_by_side(steps, rounds=_ROUNDS.value)
  for name, times in seconds.items():
    print(f"{name:>10} {statistics.median(times) * 1e3:8.0f} ms per step")
  first, *others = seconds
  return {
    f"{name}_over_{first}": median_ratio(seconds[name], seconds[first])
    for name in others
  }
