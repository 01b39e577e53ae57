"""One process of workers_test.py: trains, and prints weights and metrics."""

import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models import layers
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

BATCH, STEPS = 8, 4


def train(strategy, hosts, host):
  """Returns metrics and weights after a few steps on this host's examples."""
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [STEPS, BATCH, 32, 32, 3]).astype(np.uint8)
  labels = r.integers(0, 4, [STEPS, BATCH])
  size = BATCH // hosts
  part = slice(host * size, (host + 1) * size)
  data = tf.data.Dataset.from_tensor_slices((images[:, part], labels[:, part]))
  keras.utils.set_random_seed(1)
  with strategy.scope():
    network = keras.Sequential(
      [
        keras.Input([32, 32, 3]),
        layers.WSConv2D(8, 3, strides=4),
        layers.ScaledActivation("gelu"),
        layers.SpatialMean(),
        layers.ClassifierHead(4),
      ]
    )
    model = Classifier(
      network,
      ema_decay=0.9,
      sam=SAM(0.2, scope="global", every=2),
      micro_batches=2,
    )
    model.compile(SGD(0.5, clipping=0.05), steps_per_execution=2)
  batches = strategy.distribute_datasets_from_function(lambda context: data)
  history = model.fit(batches, steps_per_epoch=STEPS, verbose=0).history
  values = [*network.trainable_variables, *model.averages]
  return {
    "logs": {name: value[-1] for name, value in history.items()},
    "values": [v.numpy().ravel().tolist() for v in values],
  }


def main() -> None:
  """Trains as one of TF_CONFIG's workers."""
  config = json.loads(os.environ["TF_CONFIG"])
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  hosts, host = len(config["cluster"]["worker"]), config["task"]["index"]
  json.dump(train(strategy, hosts, host), sys.stdout)


if __name__ == "__main__":
  main()
