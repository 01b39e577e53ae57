"""Keras 3 in the same process: it may be used, but not mixed with ours."""

import subprocess
import sys

import numpy as np
import pytest

import nfnets_tf
from nfnets_tf import keras
from nfnets_tf.errors import UserError, refuse_keras3

IMAGES, LABELS = np.zeros([4, 32, 32, 3], np.uint8), np.arange(4)


@pytest.fixture(scope="module")
def keras3():
  import keras

  if keras.__version__ < "3":
    pytest.skip("TensorFlow 2.15 comes with Keras 2 alone")
  return keras


@pytest.fixture(scope="module")
def model():
  model = nfnets_tf.Classifier(nfnets_tf.NFNet("femto", 4))
  model.compile(nfnets_tf.SGD(0.1))
  return model


def test_keras_2_is_accepted():
  refuse_keras3("x", keras.optimizers.Adam(), [keras.layers.Dense], None, 1.0)


def foreign_objects(keras3):
  class Callback(keras3.callbacks.Callback):
    pass

  schedule = keras3.optimizers.schedules.CosineDecay(0.1, 10)
  network = keras3.Sequential([keras3.Input([32, 32, 3])])
  images, path = keras3.Input([32, 32, 3]), "not/there"
  return {
    "AGC received AdamW": lambda _: nfnets_tf.AGC(keras3.optimizers.AdamW()),
    "SGD.learning_rate received Cos": lambda _: nfnets_tf.SGD(schedule),
    "Classifier received Seq": lambda _: nfnets_tf.Classifier(network),
    "compile received SGD": lambda m: m.compile(keras3.optimizers.SGD()),
    "fit received Callback": lambda m: m.fit(
      IMAGES, LABELS, callbacks=[Callback()]
    ),
    "fit received EarlyStopping": lambda m: m.fit(
      IMAGES, LABELS, 2, 1, 0, [keras3.callbacks.EarlyStopping()]
    ),
    "evaluate received Call": lambda m: m.evaluate(
      IMAGES, LABELS, callbacks=[Callback()]
    ),
    "predict received Call": lambda m: m.predict(
      IMAGES, callbacks=[Callback()]
    ),
    "NFNet received KerasTensor": lambda m: m.network(images),
    "load_weights received Seq": lambda _: nfnets_tf.load_weights(
      network, path
    ),
    "export_saved_model received Seq": lambda _: nfnets_tf.export_saved_model(
      network, path, class_names=["a"]
    ),
  }


def test_objects_of_keras_3_are_refused(keras3, model):
  for words, call in foreign_objects(keras3).items():
    with pytest.raises(UserError) as error:
      call(model)
    assert words in str(error.value)
    assert "from nfnets_tf import keras" in str(error.value)


@pytest.mark.parametrize("legacy", ["0", "1"])
def test_other_imports_come_first(legacy):
  code = f"""import os; os.environ["TF_USE_LEGACY_KERAS"] = "{legacy}"
import keras, tensorflow as tf; tf.keras.layers.Dense(2)(tf.zeros([1, 2]))
import numpy as np, nfnets_tf
model = nfnets_tf.Classifier(nfnets_tf.NFNet("femto", 2))
logits = model(np.zeros([1, 32, 32, 3], np.uint8)).numpy()
assert logits.shape == (1, 2)
assert isinstance(model, nfnets_tf.keras.Model)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert done.returncode == 0, done.stderr.decode()[-2000:]
