"""A SavedModel in processes that have TensorFlow but not this package."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.serving.export import export_saved_model
from nfnets_tf.train.classifier import Classifier

BIN = os.path.dirname(sys.executable)
# What the project needs besides TensorFlow, and the project.
BLOCKED = (
  "nfnets_tf gin tensorflow_addons official tensorflow_datasets tensorflow_hub"
  " tensorflow_text tf_keras sklearn pandas matplotlib scipy"
).split()
# Prints the logits as each way of reading gives them.
SCRIPT = """
import json, sys
for name in {blocked!r}:
  sys.modules[name] = None  # importing it fails
  try:
    __import__(name)
  except ImportError:
    continue
  raise AssertionError(name)
import numpy as np
import tensorflow as tf

images = np.load({images!r})
logits = {{}}

served = tf.saved_model.load({path!r})
logits["loaded"] = served(images)["logits"]

signature = served.signatures["serving_default"]
floats = tf.constant(images, tf.float32)
logits["signature"] = signature(images=floats)["logits"]


class Served(tf.keras.layers.Layer):
  def __init__(self):
    super().__init__(trainable=False)
    self.served = tf.saved_model.load({path!r})

  def call(self, images):
    return self.served(images)["logits"]


inputs = tf.keras.Input([None, None, 3], dtype=tf.uint8)
model = tf.keras.Model(inputs, Served()(inputs))
logits["layer"] = model.predict(images, verbose=0)
print(json.dumps({{k: np.array(v).tolist() for k, v in logits.items()}}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(folder of a SavedModel, path of images, logits, names of classes)."""
  folder = tmp_path_factory.mktemp("saved")
  model = Classifier(NFNet("femto", 3, skip_gain=1.0))
  for variable in model.network.weights:
    variable.assign_add(0.3 * tf.random.normal(variable.shape))
  model.restart_averages()
  path = export_saved_model(
    model,
    str(folder / "1"),
    class_names=["ant", "bee", "cat"],
    transforms=[preprocessing.Resize(image_size=32)],
  )
  images = np.random.default_rng(0).integers(0, 255, [4, 32, 32, 3], np.uint8)
  np.save(folder / "images.npy", images)
  logits = model(tf.constant(images)).numpy()
  return path, str(folder / "images.npy"), logits


def run(*command, cwd):
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=cwd, env=clean()
  )
  assert done.returncode == 0, done.stderr[-1500:]
  return done.stdout


def clean():
  return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}


def numbers(text):
  return np.array(
    [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]
  )


@pytest.mark.parametrize(
  "onednn", ["1", pytest.param("0", marks=pytest.mark.soak)]
)
def test_serves_without_this_package(saved, tmp_path, monkeypatch, onednn):
  """Also without oneDNN, as on older processors."""
  monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
  path, images, logits = saved
  code = SCRIPT.format(blocked=BLOCKED, path=path, images=images)
  printed = run(sys.executable, "-c", code, cwd=tmp_path)
  results = json.loads(printed.splitlines()[-1])
  assert set(results) == {"loaded", "signature", "layer"}
  for got in results.values():
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)


def test_saved_model_cli_shows_and_runs_it(saved, tmp_path):
  path, images, logits = saved
  cli = os.path.join(BIN, "saved_model_cli")
  shown = run(cli, "show", "--dir", path, "--all", cwd=tmp_path)
  for name in ("serving_default", "serving_uint8", "serving_bytes", "features"):
    assert f"signature_def['{name}']" in shown
  assert re.search(
    r"inputs\['images'\].*\n\s+dtype: DT_FLOAT\n.*-1, -1, -1, 3", shown
  )
  printed = run(
    cli,
    *("run", "--dir", path, "--tag_set", "serve"),
    *("--signature_def", "serving_default", "--inputs", f"images={images}"),
    cwd=tmp_path,
  )
  after = printed.split("output key logits:")[1].split("Result")[0]
  np.testing.assert_allclose(
    numbers(after).reshape(4, 3), logits, rtol=1e-3, atol=1e-3
  )
