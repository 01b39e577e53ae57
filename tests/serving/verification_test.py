import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.serving import verification
from nfnets_tf.serving.folded_network import training_network
from nfnets_tf.serving.signatures import ServingModule
from nfnets_tf.serving.verification import (
  ExportVerifier,
  ModelOutputs,
  describe,
  run_and_time,
)


@pytest.fixture(scope="module")
def service(model, names, transforms):
  return ServingModule(
    training_network(model),
    names,
    transforms,
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
  return service.preprocess(tf.constant(images)).numpy().astype(np.uint8)


def test_saved_model_is_loaded_and_compared(
  model, saved, prepared, images, expected
):
  labels = expected(model, images).argmax(-1)  # as the evaluation has it
  labels[0] = (labels[0] + 1) % 3
  line = ExportVerifier(model, prepared, labels).verify_saved_model(saved)
  assert (
    "same class for 5 of 5 images; top-1 80.00% (in training: 80.00%)" in line
  )
  (difference,) = re.findall(r"largest difference (\S+)", line)
  assert float(difference) < 1e-5


def test_a_difference_is_reported(model, saved, prepared):
  bias = model.network.get_layer("classifier").bias
  bias.assign_add([0.0, 0.0, 100.0])
  try:
    line = ExportVerifier(model, prepared, None).verify_saved_model(saved)
  finally:
    bias.assign_add([0.0, 0.0, -100.0])
  (difference,) = re.findall(r"largest difference (\S+)", line)
  assert float(difference) > 0.5 and "top-1" not in line


def test_int8_is_compared_on_images_outside_its_calibration(
  model, prepared, monkeypatch, tmp_path
):
  seen = {}

  def write(file_format, path, network, module, calibration):
    seen["calibration"] = calibration
    (tmp_path / path).write_bytes(b"12")

  def open_file(file_format, path):
    return lambda x: seen.setdefault("compared", x)[:, :3, 0, 0]

  monkeypatch.setattr(verification.converters, "write", write)
  monkeypatch.setattr(verification.converters, "open_file", open_file)
  verifier = ExportVerifier(model, prepared, np.zeros(5, int))
  line = verifier.convert_and_verify("tflite_int8", str(tmp_path), None, None)
  assert "of 3 images" in line and line.startswith("model_int8.tflite: ")
  np.testing.assert_array_equal(seen["calibration"], prepared[:2])
  np.testing.assert_array_equal(seen.pop("compared"), prepared[2:])
  assert "of 5 images" in verifier.convert_and_verify(
    "tflite", str(tmp_path), None, None
  )
  np.testing.assert_array_equal(seen["calibration"], prepared)


def test_int8_needs_images_for_calibration_and_comparison(
  model, prepared, tmp_path
):
  verifier = ExportVerifier(model, prepared[:1], None)
  with pytest.raises(UserError, match="but 1 was given; give more"):
    verifier.convert_and_verify("tflite_int8", str(tmp_path), None, None)


REFERENCE = ModelOutputs(
  "in training", np.array([[4.0, 0], [0, 2], [1, 2]]), 0.5, 4e6
)


def test_every_image_runs_once_and_a_single_one_is_timed(monkeypatch):
  ticks = iter([0.0, 0.1, 1.0, 1.3, 2.0, 2.2] + [float(i) for i in range(99)])
  monkeypatch.setattr(verification.time, "perf_counter", lambda: next(ticks))
  monkeypatch.setattr(verification, "_MAX_ROUNDS", 3)
  sizes = []

  def call(images):
    sizes.append(len(images))
    return images * 2

  outputs = run_and_time("twice", call, np.arange(19.0)[:, None], 7)
  np.testing.assert_array_equal(outputs.logits[:, 0], 2 * np.arange(19.0))
  assert sizes[:3] == [8, 8, 3] and set(sizes[3:]) == {1}
  assert outputs.seconds == pytest.approx(0.2)  # the median of three
  assert (outputs.name, outputs.num_bytes) == ("twice", 7)


def test_slow_models_are_timed_less_often(monkeypatch):
  ticks = iter(range(0, 10_000, 3))
  monkeypatch.setattr(verification.time, "perf_counter", lambda: next(ticks))
  calls = []
  outputs = run_and_time(
    "slow", lambda x: calls.append(1) or x, np.ones([1, 1]), 0
  )
  assert len(calls) == 3  # all images, the trace, a timed one
  assert outputs.seconds == 3


def test_a_difference_is_relative_to_the_largest_logit():
  other = ModelOutputs(
    "other", REFERENCE.logits + [[0, 0], [0, -0.5], [0.2, 0]], 1, 1
  )
  assert other.max_relative_difference(REFERENCE) == pytest.approx(0.5 / 4)
  assert REFERENCE.max_relative_difference(REFERENCE) == 0


def test_top1_counts_labels():
  assert REFERENCE.top1(np.array([0, 1, 0])) == pytest.approx(2 / 3)


def test_selecting_outputs_keeps_their_images():
  part = REFERENCE.select(slice(1, None))
  np.testing.assert_array_equal(part.logits, REFERENCE.logits[1:])
  assert (part.name, part.seconds) == (REFERENCE.name, REFERENCE.seconds)


def test_line_states_difference_accuracy_size_and_latency():
  after = ModelOutputs("after", np.array([[4.0, 0], [2, 0], [1, 2]]), 0.25, 1e6)
  labels = np.array([0, 1, 1])
  assert describe(after, REFERENCE, labels) == (
    "after: largest difference 5.0e-01 of the largest logit, same class for 2"
    " of 3 images; top-1 66.67% (in training: 100.00%); 1.0 MB (in training:"
    " 4.0); 250.0 ms per image (in training: 500.0)"
  )
  assert "top-1" not in describe(after, REFERENCE, None)
