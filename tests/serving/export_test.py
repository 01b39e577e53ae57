import contextlib
import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.serving import export
from nfnets_tf.serving.export import Exporter, export_saved_model
from nfnets_tf.train.classifier import Classifier
from tests.support import tiny

SIGNATURES = {"serving_default", "serving_uint8", "serving_bytes", "features"}


@pytest.fixture
def save(tmp_path, names, transforms):
  def call(model, name="1", **options):
    return export_saved_model(
      model,
      str(tmp_path / name),
      class_names=names,
      transforms=transforms,
      **options,
    )

  return call


def evaluate_with(model, averaged):
  return model.averaged() if averaged else contextlib.nullcontext()


@pytest.fixture(scope="module")
def tiny_model():
  """For what does not depend on the network."""
  return Classifier(tiny.network(3), ema_decay=None)


@pytest.mark.parametrize("fold, averaged", [(True, True), (False, False)])
def test_saved_model_reproduces_the_evaluation(
  save, model, images, expected, averaged, fold
):
  before = [v.numpy() for v in (*model.network.weights, *model.averages)]
  served = tf.saved_model.load(save(model, averaged=averaged, fold=fold))
  assert set(served.signatures) == SIGNATURES
  answer = served.signatures["serving_uint8"](images=tf.constant(images))
  with evaluate_with(model, averaged):
    logits = expected(model, images)
  difference = np.abs(answer["logits"] - logits).max() / np.abs(logits).max()
  assert difference < 1e-5
  with evaluate_with(model, not averaged):  # the other weights differ
    assert np.abs(expected(model, images) - logits).max() > 1e-2
  for old, new in zip(before, (*model.network.weights, *model.averages)):
    np.testing.assert_array_equal(old, new)


def test_without_averages_the_weights_are_exported(
  save, tiny_model, images, expected
):
  served = tf.saved_model.load(save(tiny_model))
  np.testing.assert_allclose(
    served(tf.constant(images))["logits"],
    expected(tiny_model, images),
    rtol=1e-4,
    atol=1e-5,
  )


def test_bfloat16_halves_the_weights_and_outputs_stay_float32(
  save, model, images, expected
):
  sizes = {}
  for dtype in ("float32", "bfloat16"):
    path = save(model, dtype, dtype=dtype)
    data = os.path.join(path, "variables", "variables.data-00000-of-00001")
    sizes[dtype] = os.path.getsize(data)
  answer = tf.saved_model.load(path)(tf.constant(images))
  assert answer["logits"].dtype == tf.float32
  with model.averaged():
    logits = expected(model, images)
  assert np.abs(answer["logits"] - logits).max() < 0.1 * np.abs(logits).max()
  assert sizes["bfloat16"] < 0.65 * sizes["float32"]


def test_files_next_to_the_saved_model_describe_it(
  save, model, images, caplog, tmp_path, names, transforms
):
  exporter = Exporter(formats=["tflite"], license="CC0")
  with caplog.at_level(logging.INFO, "nfnets_tf"):
    path = exporter(
      model,
      str(tmp_path),
      class_names=names,
      transforms=transforms,
      sample=(images[:, :32, :32], np.zeros(len(images), int)),
      about={"data": {"d": 1}, "metrics": {"m": 2}, "configuration": "A = 1"},
    )
  files = {"MODEL_CARD.md", "classes.txt", "config.gin", "model.tflite"}
  assert files < set(os.listdir(path))
  read = {name: (tmp_path / "1" / name).read_text for name in files}
  assert read["classes.txt"]() == "ant\nbee\ncat\n"
  assert read["config.gin"]() == "A = 1"
  card = read["MODEL_CARD.md"]()
  for part in (
    "| d | 1 |",
    "| m | 2 |",
    "CC0",
    "folded, float32",
    "| averaged |",
  ):
    assert part in card
  # What is printed is in the card too.
  assert caplog.messages[0] == f"Exported {path}."
  for line, start in zip(caplog.messages[1:], ("SavedModel", "model.tflite")):
    assert line.strip().startswith(f"{start}: largest difference ")
    assert f"- {line.strip().rstrip('.')}" in card


def test_versions_count_up_and_nothing_is_overwritten(
  save, tiny_model, tmp_path, names
):
  exporter, root = Exporter(), str(tmp_path / "served")
  for version in ("1", "2"):
    path = exporter(tiny_model, root, class_names=names, transforms=())
    assert path == os.path.join(root, version)
  with pytest.raises(UserError, match=r"never overwritten.*served/3"):
    save(tiny_model, "served/1")
  assert sorted(os.listdir(root)) == ["1", "2"]


def test_class_names_must_match_the_network(tmp_path, model):
  with pytest.raises(UserError, match="2 names for 3 classes"):
    export_saved_model(model, str(tmp_path / "1"), class_names=["a", "b"])
  assert list(tmp_path.iterdir()) == []


def test_a_bare_network_is_refused(model, tmp_path, names):
  with pytest.raises(UserError, match="NFNet was given.*a Classifier"):
    export_saved_model(model.network, str(tmp_path / "1"), class_names=names)


def test_failed_export_leaves_no_files(save, model, tmp_path, monkeypatch):
  def fail(*arguments):
    tf.io.gfile.makedirs(arguments[1])
    raise OSError("no space")

  monkeypatch.setattr(tf.saved_model, "save", fail)
  with pytest.raises(OSError, match="no space"):
    save(model)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "options, words",
  [
    ({"dtype": "int8"}, "dtype = 'int8' is invalid; .*'bfloat16'"),
    ({"target": "tpu"}, "target = 'tpu' is .*'cpu' or 'accelerator'"),
    ({"fold": False, "dtype": "bfloat16"}, "'bfloat16' needs a folded"),
    ({"formats": ["onyx"]}, "formats = .'onyx'. is invalid"),
  ],
)
def test_options_are_refused_before_training(options, words):
  with pytest.raises(UserError, match=words):
    Exporter(**options)


def test_other_runtimes_get_plain_float32_operations(
  save, model, images, monkeypatch
):
  targets = []
  real = export.inference_network

  def inference_network(*arguments, **options):
    targets.append((options["target"], options["dtype"]))
    return real(*arguments, **options)

  monkeypatch.setattr(export, "inference_network", inference_network)
  sample = images[:, :32, :32], None
  save(model, "1", dtype="bfloat16", formats=["tflite"], sample=sample)
  assert targets == [
    ("cpu", "bfloat16"),
    ("accelerator", "float32"),
  ]


def test_formats_need_images(save, model, tmp_path):
  with pytest.raises(UserError, match="no sample .*formats tflite"):
    save(model, formats=["tflite"])
  assert list(tmp_path.iterdir()) == []


def test_other_networks_are_exported_unfolded(save, images):
  network = keras.Sequential(
    [
      keras.Input([None, None, 3]),
      keras.layers.GlobalAveragePooling2D(),
      keras.layers.Dense(3),
    ]
  )
  model = Classifier(network)
  with pytest.raises(UserError, match="a Sequential; expected an NFNet"):
    save(model, dtype="bfloat16")
  # The default of a run, fold=True, must not fail at the end of training.
  path = save(model)
  with open(os.path.join(path, "MODEL_CARD.md")) as file:
    assert "| form | as in training |" in file.read()
  served = tf.saved_model.load(path)
  assert set(served.signatures) == SIGNATURES - {"features"}
  assert served(tf.constant(images))["logits"].shape == (5, 3)
