"""Images per second, and memory, of complete training steps on this machine.

  python -m benchmarks.training_step --variant=F0 --batch_size=8

Compares float32 with bfloat16 in one run. The steps are complete: AGC, Nesterov
momentum, decay, averages of the weights and all metrics. The memory is the
largest that the process had, so it wants one policy a run.
"""

import json
import resource
import statistics

import numpy as np
from absl import flags

from benchmarks import entry
from benchmarks.timing import (
  median_ratio,
  seconds_side_by_side,
  train_steps,
)
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

_VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 192, "Pixels per side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step.")
_POLICIES = flags.DEFINE_list(
  "policies", ["float32", "mixed_bfloat16"], "Keras' precision policies."
)
_RECOMPUTE = flags.DEFINE_bool(
  "recompute", False, "Whether blocks are computed again in the backward pass."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Steps to time.")


def main() -> None:
  """Prints images per second and, last, the figures as JSON."""
  size, batch = _IMAGE_SIZE.value, _BATCH_SIZE.value
  images = np.random.default_rng(0).integers(
    0, 255, [batch, size, size, 3], np.uint8
  )
  labels = np.zeros([batch], np.int32)

  def step(policy):
    keras.mixed_precision.set_global_policy(policy)
    network = NFNet(_VARIANT.value, 1000, recompute=_RECOMPUTE.value)
    model = Classifier(network)
    model.compile(SGD(0.1))
    return train_steps(model, images, labels)

  seconds = seconds_side_by_side(
    {policy: step(policy) for policy in _POLICIES.value},
    rounds=_ROUNDS.value,
  )
  rates = {
    policy: batch / statistics.median(times)
    for policy, times in seconds.items()
  }
  for policy, rate in rates.items():
    print(f"{policy:>15} {rate:8.2f} images/s")
  kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  figures = {"peak_memory_gb": 1024 * kilobytes / 1e9}
  figures |= {f"{p}_images_per_second": rate for p, rate in rates.items()}
  if {"float32", "mixed_bfloat16"} <= rates.keys():
    ratio = median_ratio(seconds["float32"], seconds["mixed_bfloat16"])
    figures["bfloat16_over_float32"] = ratio
  print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
  entry.run(main)
