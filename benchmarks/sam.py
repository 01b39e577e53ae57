"""The cost of SAM: complete training steps, side by side.

  python -m benchmarks.sam

Times three steps in turn: plain, with SAM, and with SAM whose first pass takes
a fifth of the batch (Brock et al. 2021, appendix A.4). Each is complete: AGC,
momentum, decay, averages of the weights and all metrics.
"""

import json
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
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

_VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Pixels per side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 20, "Images per step.")
_POLICY = flags.DEFINE_string("policy", "float32", "Keras' precision policy.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Steps to time.")


def main() -> None:
  """Prints seconds per step and, last, the ratios as JSON."""
  keras.mixed_precision.set_global_policy(_POLICY.value)
  size, batch = _IMAGE_SIZE.value, _BATCH_SIZE.value
  images = np.random.default_rng(0).integers(
    0, 255, [batch, size, size, 3], np.uint8
  )
  labels = np.zeros([batch], np.int32)

  def step(sam):
    model = Classifier(NFNet(_VARIANT.value, 1000), sam=sam)
    model.compile(SGD(0.1))
    return train_steps(model, images, labels)

  seconds = seconds_side_by_side(
    {
      "plain": step(None),
      "sam": step(SAM()),
      "sam_fifth": step(SAM(ascent_fraction=0.2)),
    },
    rounds=_ROUNDS.value,
  )
  for name, times in seconds.items():
    print(f"{name:>10} {statistics.median(times) * 1e3:8.0f} ms per step")
  ratios = {
    f"{name}_over_plain": median_ratio(seconds[name], seconds["plain"])
    for name in ("sam", "sam_fifth")
  }
  print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
  entry.run(main)
