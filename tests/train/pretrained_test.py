"""Every kind of file gives back the weights that were saved in it."""

import json
import pickle

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data import preprocessing
from nfnets_tf.errors import UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.serving.export import export_saved_model
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.pretrained import Start, load_weights, save_deepmind
from nfnets_tf.train.run_state import RunState


def randomize(variables, seed):
  r = np.random.default_rng(seed)
  for variable in variables:
    variable.assign(r.standard_normal(variable.shape))


def source(classes=4, **options):
  """A compiled classifier whose weights and averages are all different."""
  model = Classifier(NFNet("femto", classes), **options)
  model.compile(SGD(0.1))
  model.optimizer.iterations.assign(1)  # before, averages are the weights
  randomize(model.network.variables, 1)
  randomize(model.averages, 2)
  return model


def checkpoint(model, tmp_path):
  directory = str(tmp_path / "run" / "checkpoints")
  return Checkpoints(directory, model, RunState(seed=0), keep=1)


def saved(kind, model, tmp_path):
  """Saves `model` and returns what a user would give to load_weights."""
  path = str(tmp_path / kind)
  if kind == "checkpoint":
    saved = checkpoint(model, tmp_path)
    saved.save()
    saved.wait()
    return saved.latest
  if kind == "workdir":
    saved = checkpoint(model, tmp_path)
    saved.save()
    saved.wait()
    return str(tmp_path / "run")
  if kind in ("SavedModel", "raw SavedModel"):
    return export_saved_model(
      model,
      path,
      class_names=list("abcd"),
      transforms=[preprocessing.Resize(image_size=32)],
      averaged=kind == "SavedModel",
      fold=False,
    )
  if kind == "F0_haiku.npz":
    save_deepmind(model, path)
  elif kind.startswith("network"):
    save = (
      model.network.save_weights if "weights" in kind else model.network.save
    )
    save(path)
  else:
    save = model.save_weights if "weights" in kind else model.save
    save(path)
  return path


RAW = [
  "F0_haiku.npz",
  "raw SavedModel",
  "network.keras",
  "network.h5",
  "network_weights.h5",
  "network.weights.h5",
]
WITH_AVERAGES = [
  "checkpoint",
  "workdir",
  "SavedModel",
  "classifier.keras",
  "classifier_weights.h5",
  "classifier.weights.h5",
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras advises .keras
@pytest.mark.parametrize("kind", RAW + WITH_AVERAGES)
def test_a_file_gives_back_its_weights(kind, tmp_path):
  model = source()
  path = saved(kind, model, tmp_path)
  network = NFNet("femto", 4)
  load_weights(network, path)
  want = model.averages if kind in WITH_AVERAGES else model.network.variables
  for got, expected in zip(network.variables, want):
    np.testing.assert_array_equal(got, expected)
  if kind in WITH_AVERAGES and kind != "SavedModel":
    load_weights(network, path, averaged=False)
    for got, expected in zip(network.variables, model.network.variables):
      np.testing.assert_array_equal(got, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", RAW + WITH_AVERAGES)
def test_the_head_is_kept_or_starts_anew(kind, tmp_path):
  path = saved(kind, source(), tmp_path)
  network = NFNet("femto", 7)
  before = [v.numpy() for v in network.variables]
  message = r"classifier differs: give keep_head=False|only the classifier"
  with pytest.raises(UserError, match=message):
    load_weights(network, path)
  for got, expected in zip(network.variables, before):
    np.testing.assert_array_equal(got, expected)
  load_weights(network, path, keep_head=False)
  *body, kernel, bias = zip(network.variables, before)
  assert all(np.abs(got - old).max() > 0 for got, old in body)
  for got, old in (kernel, bias):
    np.testing.assert_array_equal(got, old)


def test_deepminds_file_of_f0_gives_deepminds_logits(
  testdata, golden_parameters, tmp_path
):
  """The published layout, written by plain pickle, at two odd sizes."""
  shapes = json.loads((testdata / "f0_shapes.json").read_text())
  parameters = golden_parameters(
    {(m, n): tuple(s) for m, names in shapes.items() for n, s in names.items()}
  )
  path = tmp_path / "F0_haiku.npz"
  path.write_bytes(pickle.dumps(parameters))
  network = NFNet("F0")
  load_weights(network, str(path))
  for size in (64, 97):
    golden = np.load(testdata / f"f0_forward_{size}px.npz")
    x = np.random.default_rng(7).standard_normal([2, size, size, 3], np.float32)
    np.testing.assert_allclose(network(x), golden["logits"], atol=1e-5)
  again = tmp_path / "again.npz"
  save_deepmind(network, str(again))
  got = pickle.loads(again.read_bytes())
  assert got.keys() == parameters.keys()
  for module, arrays in parameters.items():
    assert got[module].keys() == arrays.keys()
    for name, array in arrays.items():
      assert got[module][name].dtype == np.float32
      np.testing.assert_array_equal(got[module][name], array)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras advises .keras
@pytest.mark.parametrize("kind", RAW + WITH_AVERAGES)
def test_a_network_without_top_takes_the_body(kind, tmp_path):
  model = source()
  path = saved(kind, model, tmp_path)
  network = NFNet("femto", include_top=False)
  with pytest.raises(UserError, match="2 left over .NFNet/~/linear:b, NFN"):
    load_weights(network, path)
  load_weights(network, path, keep_head=False)
  if kind in WITH_AVERAGES:
    for variable, average in zip(model.network.variables, model.averages):
      variable.assign(average)
  images = tf.random.normal([2, 32, 32, 3])
  pool = keras.Model(
    model.network.input, model.network.get_layer("pool").output
  )
  np.testing.assert_array_equal(network(images), pool(images))


@pytest.mark.parametrize("kind", ["F0_haiku.npz", "classifier.keras"])
def test_another_variant_is_refused_with_lists(kind, tmp_path):
  path = saved(kind, source(), tmp_path)
  with pytest.raises(UserError) as error:
    load_weights(NFNet("nano", 4), path)
  text = str(error.value)
  assert "missing (NFNet/~/nf_block_4/" in text
  assert "NFNet/~/stem_conv1:w is (3, 3, 8, 8), not (3, 3, 8, 16)" in text
  assert "choose the variant" in text


def test_a_classifiers_averages_start_from_what_is_loaded(tmp_path):
  model = source()
  path = saved("F0_haiku.npz", model, tmp_path)
  other = source()
  randomize(other.network.variables, 3)
  load_weights(other, path)
  for pair in zip(other.averages, model.network.variables):
    np.testing.assert_array_equal(*pair)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras advises .keras
@pytest.mark.parametrize("kind", WITH_AVERAGES)
def test_a_file_of_frozen_parts_has_all_averages(kind, tmp_path):
  model = source(frozen="backbone")
  network = NFNet("femto", 4)
  load_weights(network, saved(kind, model, tmp_path))
  for got, expected in zip(network.variables, model.averages):
    np.testing.assert_array_equal(got, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras advises .keras
@pytest.mark.parametrize("kind", WITH_AVERAGES[2:])
def test_before_any_training_the_averages_are_the_weights(kind, tmp_path):
  """Zeros would be exported, and loaded, without a word."""
  network = NFNet("femto", 4)
  randomize(network.variables, 5)
  model = Classifier(network)
  other = NFNet("femto", 4)
  load_weights(other, saved(kind, model, tmp_path))
  for got, expected in zip(other.variables, network.variables):
    np.testing.assert_array_equal(got, expected)


def test_a_path_with_brackets_is_a_path_and_a_prefix_is_none(tmp_path):
  path = tmp_path / "run[1]"
  path.mkdir()
  save_deepmind(NFNet("femto", 4), str(path / "w.npz"))
  options = {"keep_head": True, "averaged": True}
  Start(path=str(path / "w.npz"), **options).check()
  with pytest.raises(UserError, match="does not exist"):
    Start(path=str(tmp_path / "ru"), **options).check()


def test_a_folded_savedmodel_says_what_to_load_instead(tmp_path):
  path = export_saved_model(
    source(), str(tmp_path / "1"), class_names=list("abcd")
  )
  with pytest.raises(UserError, match="is folded for serving.*checkpoint"):
    load_weights(NFNet("femto", 4), path)


def test_what_is_no_weight_file_is_refused(tmp_path):
  network = NFNet("femto", 4)
  (tmp_path / "empty").mkdir()
  (tmp_path / "text.keras").write_text("weights")
  (tmp_path / "text.npz").write_text("weights")
  foreign = tf.train.Checkpoint(v=tf.Variable(1.0))
  for path, complaint in {
    "nowhere": "does not exist; expected a parameter file of DeepMind's",
    "empty": "holds none; expected",
    "text.keras": "cannot be read .File is not a zip file",
    "text.npz": "is no whole pickle",
    foreign.save(str(tmp_path / "foreign")): "holds no parameters by name",
  }.items():
    with pytest.raises(UserError, match=complaint):
      load_weights(network, str(tmp_path / path))
  with pytest.raises(UserError, match="received a model of Sequential"):
    load_weights(keras.Sequential(), "F0_haiku.npz")
