"""A SavedModel in processes that have TensorFlow and nothing of ours."""

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
# What the project needs beside TensorFlow, and the project.
BLOCKED = (
  "nfnets_tf gin tensorflow_addons official tensorflow_datasets tensorflow_hub"
  " tensorflow_text tf_keras sklearn pandas matplotlib scipy"
)
ALONE = f"""
import sys
for name in {BLOCKED.split()!r}:
  sys.modules[name] = None  # importing it fails
import numpy as np
import tensorflow as tf
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


SCRIPTS = {
  "load": """
served = tf.saved_model.load({path!r})
print(served(np.load({images!r}))["logits"].numpy().tolist())
""",
  "signature": """
served = tf.saved_model.load({path!r}).signatures["serving_default"]
images = tf.constant(np.load({images!r}), tf.float32)
print(served(images=images)["logits"].numpy().tolist())
""",
  # A SavedModel is a layer by three lines, in a model that can be called and
  # put together as any other.
  "Keras layer": """
class Served(tf.keras.layers.Layer):
  def __init__(self):
    super().__init__(trainable=False)
    self.served = tf.saved_model.load({path!r})

  def call(self, images):
    return self.served(images)["logits"]

inputs = tf.keras.Input([None, None, 3], dtype=tf.uint8)
model = tf.keras.Model(inputs, Served()(inputs))
print(model.predict(np.load({images!r}), verbose=0).tolist())
""",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_read_with_tensorflow_alone(saved, tmp_path, script):
  path, images, logits = saved
  code = ALONE + SCRIPTS[script].format(path=path, images=images)
  got = numbers(run(sys.executable, "-c", code, cwd=tmp_path))
  np.testing.assert_allclose(got.reshape(4, 3), logits, rtol=1e-4, atol=1e-4)


def test_without_onednn_it_is_read_as_well(saved, tmp_path, monkeypatch):
  """As on older processors; TensorFlow's own kernels fuse less."""
  monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
  path, images, logits = saved
  code = ALONE + SCRIPTS["signature"].format(path=path, images=images)
  got = numbers(run(sys.executable, "-c", code, cwd=tmp_path))
  np.testing.assert_allclose(got.reshape(4, 3), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nfnets_tf", "gin", "official"])
def test_what_is_blocked_cannot_be_imported(tmp_path, name):
  """Or the tests above would pass with it at hand."""
  with pytest.raises(AssertionError, match=f"import of {name} halted"):
    run(sys.executable, "-c", f"{ALONE}\nimport {name}", cwd=tmp_path)


def test_the_command_line_tool_shows_and_runs_it(saved, tmp_path):
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
