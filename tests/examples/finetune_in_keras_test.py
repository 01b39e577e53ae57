"""The example, run as its first lines say, on a folder of its own."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import save_deepmind
from nfnets_tf.train.classifier import Classifier

EXAMPLE = (
  pathlib.Path(__file__).parents[2] / "examples" / "finetune_in_keras.py"
)


@pytest.fixture
def photos(tmp_path):
  """Two classes that differ in color."""
  r = np.random.default_rng(0)
  for channel, name in enumerate(("red", "green")):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(20):
      image = r.integers(0, 60, [32, 32, 3]).astype(np.uint8)
      image[..., channel] += 180
      path = tmp_path / "photos" / name / f"{i}.png"
      path.write_bytes(tf.io.encode_png(image).numpy())
  return tmp_path / "photos"


@pytest.mark.soak
def test_it_learns_saves_and_starts_from_weights(photos, tmp_path):
  weights = NFNet("femto", 1000)
  save_deepmind(weights, str(tmp_path / "weights.npz"))
  output = tmp_path / "model.keras"
  done = subprocess.run(
    [
      sys.executable,
      str(EXAMPLE),
      str(photos),
      f"--weights={tmp_path / 'weights.npz'}",
      "--variant=femto",
      "--image_size=32",
      "--batch_size=6",
      "--epochs=3",
      f"--output={output}",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  result = json.loads(done.stdout.splitlines()[-1])
  assert result["top1"] == 1.0
  model = keras.models.load_model(output)
  assert isinstance(model, Classifier) and model.sam.rho == 0.05
  for variable, average in zip(model.network.variables, model.averages):
    np.testing.assert_array_equal(variable, average)
  assert model.network.output_shape == (None, 2)
