import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.serving import trial as trials
from nfnets_tf.serving.inference import as_in_training
from nfnets_tf.serving.signatures import Service
from nfnets_tf.serving.trial import Trial


@pytest.fixture(scope="module")
def service(model, names, operations):
  return Service(
    as_in_training(model),
    names,
    operations,
    parameters=model.network.variables,
  )


@pytest.fixture
def saved(service, tmp_path):
  path = str(tmp_path / "1")
  tf.saved_model.save(service, path, service.signatures())
  return path


@pytest.fixture
def prepared(service, images):
  """As the evaluation leaves them: to be cropped once, and not again."""
  return service.prepare(tf.constant(images)).numpy().astype(np.uint8)


def test_a_savedmodel_is_opened_from_its_files_and_asked(
  model, saved, prepared, images, expected
):
  labels = expected(model, images).argmax(-1)  # as the evaluation has it
  labels[0] = (labels[0] + 1) % 3
  line = Trial(model, prepared, labels).saved_model(saved)
  assert "same class for 5 of 5 images; top-1 80.00% (before: 80.00%)" in line
  (difference,) = re.findall(r"differs by (\S+)", line)
  assert float(difference) < 1e-5


def test_what_differs_is_seen(model, saved, prepared):
  """The file says one thing, the network in training another."""
  bias = model.network.get_layer("classifier").bias
  bias.assign_add([0.0, 0.0, 100.0])
  try:
    line = Trial(model, prepared, None).saved_model(saved)
  finally:
    bias.assign_add([0.0, 0.0, -100.0])
  (difference,) = re.findall(r"differs by (\S+)", line)
  assert float(difference) > 0.5 and "top-1" not in line


def test_int8_is_compared_on_images_that_it_has_not_seen(
  model, prepared, monkeypatch, tmp_path
):
  seen = {}

  def write(kind, path, network, module, calibration):
    seen["calibration"] = calibration
    (tmp_path / path).write_bytes(b"12")

  def open_file(kind, path):
    return lambda x: seen.setdefault("asked", x)[:, :3, 0, 0]

  monkeypatch.setattr(trials.formats, "write", write)
  monkeypatch.setattr(trials.formats, "open_file", open_file)
  trial = Trial(model, prepared, np.zeros(5, int))
  line = trial.file("tflite_int8", str(tmp_path), None, None)
  assert "of 3 images" in line and line.startswith("model_int8.tflite: ")
  np.testing.assert_array_equal(seen["calibration"], prepared[:2])
  np.testing.assert_array_equal(seen.pop("asked"), prepared[2:])
  assert "of 5 images" in trial.file("tflite", str(tmp_path), None, None)
  np.testing.assert_array_equal(seen["calibration"], prepared)


def test_int8_needs_images_for_both(model, prepared, tmp_path):
  trial = Trial(model, prepared[:1], None)
  with pytest.raises(UserError, match="but 1 was given; give more"):
    trial.file("tflite_int8", str(tmp_path), None, None)
