"""One process of stacks_test.py, under one of the two stacks.

  python -m tests.support.stack_worker write FOLDER
  python -m tests.support.stack_worker read FOLDER RESULT

`write` trains and saves a network in every format; `read` loads what another
process wrote and writes what it computes to RESULT, an .npz file.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

import nfnets_tf
from nfnets_tf import keras
from nfnets_tf.models.weights import assign_parameters, get_parameters

STEPS = 5


def batches(count):
  """Yields `count` batches of 8 images and labels, the same everywhere."""
  r = np.random.default_rng(0)
  for _ in range(count):
    images = r.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
    yield images, r.integers(0, 10, [8])


def make_network():
  """Returns a network whose weights do not depend on TensorFlow's random."""
  network = nfnets_tf.NFNet("femto", 10, stochdepth_rate=0.1, skip_gain=1.0)
  r = np.random.default_rng(1)
  parameters = get_parameters(network)
  for module in sorted(parameters):
    for name in sorted(parameters[module]):
      value = parameters[module][name]
      noise = 0.1 * r.standard_normal(value.shape).astype(np.float32)
      parameters[module][name] = value * 0 + noise + (name == "gain")
  assign_parameters(network, parameters, keep_head=True)
  return network


def describe(model):
  """Returns {name: logits of images, and of the averaged weights}."""
  ((images, _),) = batches(1)
  with model.averaged():
    averaged = model(images).numpy()
  return {"logits": model(images).numpy(), "averaged": averaged}


def train(model, count):
  for images, labels in batches(count):
    model.train_on_batch(images, labels)


def write(folder):
  """Trains for five steps and saves; logits.npz says what was computed."""
  model = nfnets_tf.Classifier(make_network(), ema_decay=0.9)
  model.compile(nfnets_tf.SGD(0.1, clipping=0.05))
  results = {f"{k}_before": v for k, v in describe(model).items()}
  train(model, STEPS)
  results.update(describe(model))
  names = [str(number) for number in range(10)]
  for fold in (True, False):
    path = os.path.join(folder, "folded" if fold else "unfolded")
    nfnets_tf.export_saved_model(model, path, class_names=names, fold=fold)
  model.save(os.path.join(folder, "model.keras"))
  model.network.save_weights(os.path.join(folder, "weights.h5"))
  train(model, 1)
  results["continued"] = describe(model)["logits"]
  np.savez(os.path.join(folder, "results.npz"), **results)


def read(folder, path):
  """Loads every file of `folder`; writes logits to `path`."""
  ((images, _),) = batches(1)
  results = {}
  for fold in ("folded", "unfolded"):
    served = tf.saved_model.load(os.path.join(folder, fold))
    results[fold] = served(images)["logits"].numpy()
  network = nfnets_tf.NFNet("femto", 10)
  model = nfnets_tf.Classifier(network)
  for name in ("model.keras", "weights.h5", "unfolded"):
    nfnets_tf.load_weights(model, os.path.join(folder, name), averaged=False)
    results[f"load_weights_{name}"] = model(images).numpy()
  model.network.load_weights(os.path.join(folder, "weights.h5"))
  results["weights.h5_in_keras"] = model(images).numpy()
  model = keras.models.load_model(os.path.join(folder, "model.keras"))
  for key, value in describe(model).items():
    results[f"model.keras_{key}"] = value
  train(model, 1)
  results["model.keras_continued"] = describe(model)["logits"]
  np.savez(path, **results)


if __name__ == "__main__":
  {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
