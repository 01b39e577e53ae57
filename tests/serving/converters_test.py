import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.serving.converters import (
  FILES,
  INT8,
  check_formats,
  num_bytes,
  open_file,
  write,
)
from nfnets_tf.serving.folded_network import FoldedInference
from nfnets_tf.serving.folding import fold

ONNX = importlib.util.find_spec("tf2onnx") is not None


@pytest.fixture(scope="module")
def exported(trained):
  model = trained("nano")
  inference = FoldedInference(fold(model.network), target="accelerator")
  return model, inference, lambda x: inference(model.normalize(x))


@pytest.fixture(scope="module")
def prepared(images):
  return images[:, :32, :32].astype(np.float32)


@pytest.mark.parametrize(
  "name",
  [
    "tflite",
    pytest.param(
      "onnx",
      marks=pytest.mark.skipif(
        not ONNX, reason="tf2onnx is not installed, only with [onnx]"
      ),
    ),
  ],
)
def test_other_runtimes_agree_at_any_batch_size(
  exported, prepared, tmp_path, name
):
  model, inference, network = exported
  path = str(tmp_path / FILES[name])
  write(name, path, network, inference, prepared[:1])
  call = open_file(name, path)
  for count in (1, 4):
    expected = model(prepared[:count]).numpy()
    difference = np.abs(call(prepared[:count]) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
  assert tf.io.gfile.stat(path).length < 1.5 * num_bytes(inference.variables)


def test_int8_is_a_quarter_of_the_size_and_close(exported, prepared, tmp_path):
  model, inference, network = exported
  path = str(tmp_path / FILES[INT8])
  write(INT8, path, network, inference, prepared)
  expected = model(prepared).numpy()
  got = open_file(INT8, path)(prepared)
  difference = np.abs(got - expected).max() / np.abs(expected).max()
  assert 1e-4 < difference < 0.2
  # Each kernel is held by its channels, and the graph has a size too.
  assert tf.io.gfile.stat(path).length < 0.4 * num_bytes(inference.variables)


def test_int8_is_calibrated_on_the_given_images(exported, prepared, tmp_path):
  model, inference, network = exported
  answers = []
  for name, calibration in (("dark", prepared / 50), ("real", prepared)):
    path = str(tmp_path / name)
    write(INT8, path, network, inference, calibration)
    answers.append(open_file(INT8, path)(prepared))
  expected = model(prepared).numpy()
  dark, real = (np.abs(x - expected).max() for x in answers)
  assert real < dark / 2


def test_too_large_weights_are_refused(
  exported, prepared, tmp_path, monkeypatch
):
  monkeypatch.setattr("nfnets_tf.serving.converters._MAX_BYTES", 1000)
  _, inference, network = exported
  with pytest.raises(UserError, match="GB do not fit into a tflite file"):
    write("tflite", str(tmp_path / "x"), network, inference, prepared)
  assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_missing_packages_are_refused(monkeypatch):
  for names in (["tflite", "tflight"], "onnx", None):
    with pytest.raises(UserError, match="formats = .* is invalid; exp"):
      check_formats(names)
  check_formats(["tflite"])
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  check_formats(["tflite", INT8])
  check_formats(())
  with pytest.raises(UserError, match="needs tf2onnx and onnxruntime.*pip"):
    check_formats(["tflite", "onnx"])


def test_bytes_are_counted_by_dtype():
  variables = [
    tf.Variable(tf.zeros([2, 3])),
    tf.Variable(tf.zeros([5], "bfloat16")),
  ]
  assert num_bytes(variables) == 2 * 3 * 4 + 5 * 2
