import importlib.util
import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.models.sparse_kernels import sparse_convolutions
from nfnets_tf.serving import converters
from nfnets_tf.serving.converters import (
  FILES,
  INT8,
  ExportVerifier,
  ModelOutputs,
  check_formats,
  describe,
  num_bytes,
  open_file,
  run_and_time,
  write,
)
from nfnets_tf.serving.folding import FoldedNFNet, training_network
from nfnets_tf.serving.signatures import ServingModule

ONNX = importlib.util.find_spec("tf2onnx") is not None


@pytest.fixture(scope="module")
def exported(trained):
  model = trained("nano")
  inference = FoldedNFNet(model.network, target="accelerator")
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


def test_tflite_stores_no_zeros_of_a_pruned_network(
  trained, prepared, tmp_path
):
  model, sizes = trained("nano", sparse="live"), []
  for share in (0.0, 7 / 8):
    for layer in sparse_convolutions(model.network):
      kernel = layer.kernel.numpy()
      kernel[np.abs(kernel) < np.quantile(np.abs(kernel), share)] = 0
      layer.kernel.assign(kernel)
    inference = FoldedNFNet(model.network, target="accelerator")
    path = str(tmp_path / f"{share}.tflite")

    def network(images, inference=inference):
      return inference(model.normalize(images))

    write("tflite", path, network, inference, prepared[:1])
    expected = model(prepared).numpy()
    difference = np.abs(open_file("tflite", path)(prepared) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
    sizes.append(tf.io.gfile.stat(path).length)
  assert sizes[1] < 0.6 * sizes[0]


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
def evaluated(service, images):
  """As the evaluation leaves them: to be cropped once, and not again."""
  return service.preprocess(tf.constant(images)).numpy().astype(np.uint8)


def test_saved_model_is_loaded_and_compared(
  model, saved, evaluated, images, expected
):
  labels = expected(model, images).argmax(-1)  # as the evaluation has it
  labels[0] = (labels[0] + 1) % 3
  line = ExportVerifier(model, evaluated, labels).verify_saved_model(saved)
  assert (
    "same class for 5 of 5 images; top-1 80.00% (in training: 80.00%)" in line
  )
  (difference,) = re.findall(r"largest difference (\S+)", line)
  assert float(difference) < 1e-5


def test_a_difference_is_reported(model, saved, evaluated):
  bias = model.network.get_layer("classifier").bias
  bias.assign_add([0.0, 0.0, 100.0])
  try:
    line = ExportVerifier(model, evaluated, None).verify_saved_model(saved)
  finally:
    bias.assign_add([0.0, 0.0, -100.0])
  (difference,) = re.findall(r"largest difference (\S+)", line)
  assert float(difference) > 0.5 and "top-1" not in line


def test_int8_is_compared_on_images_outside_its_calibration(
  model, evaluated, monkeypatch, tmp_path
):
  seen = {}

  def write(file_format, path, network, module, calibration):
    seen["calibration"] = calibration
    (tmp_path / path).write_bytes(b"12")

  def open_file(file_format, path):
    return lambda x: seen.setdefault("compared", x)[:, :3, 0, 0]

  monkeypatch.setattr(converters, "write", write)
  monkeypatch.setattr(converters, "open_file", open_file)
  verifier = ExportVerifier(model, evaluated, np.zeros(5, int))
  line = verifier.convert_and_verify("tflite_int8", str(tmp_path), None, None)
  assert "of 3 images" in line and line.startswith("model_int8.tflite: ")
  np.testing.assert_array_equal(seen["calibration"], evaluated[:2])
  np.testing.assert_array_equal(seen.pop("compared"), evaluated[2:])
  assert "of 5 images" in verifier.convert_and_verify(
    "tflite", str(tmp_path), None, None
  )
  np.testing.assert_array_equal(seen["calibration"], evaluated)


def test_int8_needs_images_for_calibration_and_comparison(
  model, evaluated, tmp_path
):
  verifier = ExportVerifier(model, evaluated[:1], None)
  with pytest.raises(UserError, match="but 1 was given; give more"):
    verifier.convert_and_verify("tflite_int8", str(tmp_path), None, None)


REFERENCE = ModelOutputs(
  "in training", np.array([[4.0, 0], [0, 2], [1, 2]]), 0.5, 4e6
)


def test_every_image_runs_once_and_a_single_one_is_timed(monkeypatch):
  ticks = iter([0.0, 0.1, 1.0, 1.3, 2.0, 2.2] + [float(i) for i in range(99)])
  monkeypatch.setattr(converters.time, "perf_counter", lambda: next(ticks))
  monkeypatch.setattr(converters, "_MAX_ROUNDS", 3)
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
  monkeypatch.setattr(converters.time, "perf_counter", lambda: next(ticks))
  calls = []
  outputs = run_and_time(
    "slow", lambda x: calls.append(1) or x, np.ones([1, 1]), 0
  )
  assert len(calls) == 3  # all images, the trace, a timed one
  assert outputs.seconds == 3


def test_a_difference_is_relative_to_the_largest_logit():
  logits = REFERENCE.logits + [[0, 0], [0, -0.5], [0.2, 0]]
  line = describe(REFERENCE._replace(logits=logits), REFERENCE, None)
  assert "largest difference 1.2e-01 of" in line  # 0.5 / 4
  assert "difference 0.0e+00" in describe(REFERENCE, REFERENCE, None)


def test_line_states_difference_accuracy_size_and_latency():
  after = ModelOutputs("after", np.array([[4.0, 0], [2, 0], [1, 2]]), 0.25, 1e6)
  labels = np.array([0, 1, 1])
  assert describe(after, REFERENCE, labels) == (
    "after: largest difference 5.0e-01 of the largest logit, same class for 2"
    " of 3 images; top-1 66.67% (in training: 100.00%); 1.0 MB (in training:"
    " 4.0); 250.0 ms per image (in training: 500.0)"
  )
  assert "top-1" not in describe(after, REFERENCE, None)
