"""The cost of pruning: complete training steps, side by side.

  python -m benchmarks.pruning

Times three steps in turn: of a dense network, of a sparse one, and of a sparse
one that prunes at its end, as one step in 100 does in the published recipe.
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
from nfnets_tf.optim.pruning import Pruning
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

_VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 192, "Pixels per side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images per step.")
_POLICY = flags.DEFINE_string("policy", "float32", "Keras' precision policy.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Steps to time.")
_SPARSITY = flags.DEFINE_string("sparsity", "0.75", "A fraction, or 'n:m'.")
_STEPS = 1000
_EVERY = 100  # steps from one pruning to the next in the published recipe


def main() -> None:
  """Prints seconds per step and, last, the ratios as JSON."""
  keras.mixed_precision.set_global_policy(_POLICY.value)
  size, batch = _IMAGE_SIZE.value, _BATCH_SIZE.value
  images = np.random.default_rng(0).integers(
    0, 255, [batch, size, size, 3], np.uint8
  )
  labels = np.zeros([batch], np.int32)
  text = _SPARSITY.value
  sparsity = text if ":" in text else float(text)

  def step(interval):
    pruning = interval and Pruning(
      sparsity, total_steps=_STEPS, begin=0.0, end=1.0, interval=interval
    )
    network = NFNet(_VARIANT.value, 1000, sparse="live" if pruning else None)
    model = Classifier(network, pruning=pruning)
    model.compile(SGD(0.1))
    return train_steps(model, images, labels)

  seconds = seconds_side_by_side(
    {"dense": step(None), "sparse": step(1.0), "pruning": step(1 / _STEPS)},
    rounds=_ROUNDS.value,
  )
  for name, times in seconds.items():
    print(f"{name:>10} {statistics.median(times) * 1e3:8.0f} ms per step")
  sparse, pruning = (
    median_ratio(seconds[name], seconds["dense"])
    for name in ("sparse", "pruning")
  )
  ratios = {
    "sparse_over_dense": sparse,
    "pruning_over_dense": pruning,
    "mean_over_dense": sparse + (pruning - sparse) / _EVERY,
  }
  print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
  entry.run(main)
