"""Models in files, and a process that knows none of their classes.

  python -m tests.support.saved_models FOLDER

imports `nfnets_tf` alone, loads the models in the folder, and prints {file:
result or error} as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import nfnets_tf

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

NETWORKS = ("n.keras", "n_folder", "n.h5")
CLASSIFIERS = ("c.keras", "c_folder")
CLASSES = 4


def data() -> tuple[np.ndarray, np.ndarray]:
  """Returns (images uint8 [8, 16, 16, 3], labels [8])."""
  images = np.random.default_rng(0).integers(0, 255, [8, 16, 16, 3])
  return images.astype(np.uint8), np.arange(8) % CLASSES


def state(model) -> dict[str, list[float]]:
  """Returns numbers that tell one model from another, after more training.

  Args:
    model: a compiled `Classifier`.
  """
  images, labels = data()
  model.run_eagerly = True  # sooner done
  result = {
    "logits": model.predict(images, verbose=0),
    "averages": np.concatenate([v.numpy().ravel()[:3] for v in model.averages]),
    "iterations": model.optimizer.iterations.numpy(),
    "fit": model.fit(images, labels, shuffle=False, verbose=0).history["loss"],
    "next": model.evaluate(images, labels, verbose=0),
  }
  return {name: np.ravel(value).tolist() for name, value in result.items()}


def save(folder: str, names: Sequence[str]) -> None:
  """Saves a network and a classifier that has trained.

  Args:
    folder: where to.
    names: some of `NETWORKS` and `CLASSIFIERS`.
  """
  from tests.support import tiny

  images, labels = data()
  network = nfnets_tf.NFNet("femto", CLASSES, skip_gain=0.5)
  results = {"n": network(np.float32(images)).numpy().ravel().tolist()}
  for name in set(names) & set(NETWORKS):
    network.save(os.path.join(folder, name))
  nfnets_tf.keras.utils.set_random_seed(1)
  model = nfnets_tf.Classifier(
    tiny.network(CLASSES), ema_decay=0.9, sam=nfnets_tf.SAM(0.1)
  )
  model.compile(nfnets_tf.AGC(nfnets_tf.keras.optimizers.Adam(0.01), 0.1))
  model.run_eagerly = True
  model.fit(images, labels, epochs=2, shuffle=False, verbose=0)
  for name in set(names) & set(CLASSIFIERS):
    model.save(os.path.join(folder, name))
  results["c"] = state(model)
  with open(os.path.join(folder, "saved.json"), "w") as file:
    json.dump(results, file)


def load(folder: str) -> None:
  """Loads what `save` saved, and prints what it is."""
  import tensorflow as tf

  if tf.__version__.startswith("2.15."):
    keras = tf.keras
  else:
    import tf_keras as keras

  assert not any(name.startswith("nfnets_tf.models") for name in sys.modules)
  images, _ = data()
  results = {}
  for name in sorted(set(os.listdir(folder)) - {"saved.json"}):
    path = os.path.join(folder, name)
    try:
      for compiled in (False, True):
        model = keras.models.load_model(path, compile=compiled)
      assert type(model) is getattr(
        nfnets_tf, "NFNet" if name in NETWORKS else "Classifier"
      )
      if name in NETWORKS:
        results[name] = model(np.float32(images)).numpy().ravel().tolist()
      else:
        results[name] = state(model)
    except Exception as error:
      results[name] = f"{type(error).__name__}: {error}"
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  load(sys.argv[1])
