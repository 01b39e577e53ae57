"""Names of the weights, and loading them from every kind of file."""

import functools
import json
import pathlib
import pickle

import h5py
import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.parameter_names import split_name
from nfnets_tf.models.safetensors_files import read_safetensors
from nfnets_tf.models.weights import (
  InitWeights,
  assign_parameters,
  get_parameters,
  join_name,
  load_weights,
  named_variables,
  parameter_table,
  save_deepmind,
  save_timm,
)
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.serving.converters import num_bytes
from nfnets_tf.serving.export import export_saved_model
from nfnets_tf.serving.folding import FoldedNFNet
from nfnets_tf.train.checkpointing import Checkpointer
from nfnets_tf.train.classifier import Classifier


def test_table_has_the_names_and_shapes_of_deepminds_f0(testdata):
  shapes = json.loads((testdata / "f0_shapes.json").read_text())
  expected = {
    (module, name): tuple(shape)
    for module, names in shapes.items()
    for name, shape in names.items()
  }
  network = cost.abstractly(lambda: NFNet("F0"))
  table = parameter_table(network)
  assert {key: tuple(v.shape) for key, v in table.items()} == expected
  assert len({id(v) for v in table.values()}) == len(network.variables)


def test_misfits_are_listed_and_nothing_is_assigned(golden_parameters):
  network = NFNet("femto", 3)
  table = parameter_table(network)
  given = golden_parameters({key: tuple(v.shape) for key, v in table.items()})
  del given["NFNet/~/linear"]["b"]
  given["NFNet/~/linear"]["w"] = np.zeros([2, 2])
  given["NFNet/~/extra"] = {"w": np.zeros(1)}
  before = network.get_weights()
  with pytest.raises(ValueError) as error:
    assign_parameters(network, given)
  for fault in (
    "1 missing (NFNet/~/linear:b)",
    "1 left over (NFNet/~/extra:w)",
    "1 of another shape (NFNet/~/linear:w is (2, 2), not (64, 3))",
  ):
    assert fault in str(error.value)
  for old, new in zip(before, network.get_weights()):
    np.testing.assert_array_equal(old, new)


def test_assigned_parameters_are_read_back(golden_parameters):
  network = NFNet("femto", 3)
  table = parameter_table(network)
  given = golden_parameters({key: tuple(v.shape) for key, v in table.items()})
  assign_parameters(network, given)
  got = get_parameters(network)
  assert got.keys() == given.keys()
  for module, arrays in given.items():
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[module][name], array)


@pytest.mark.parametrize("include_top", [True, False])
def test_variables_of_an_nfnet_have_deepminds_names(include_top):
  network = NFNet("femto", 3, include_top=include_top)
  named = named_variables(network)
  assert {id(v) for v in named.values()} == {id(v) for v in network.variables}
  assert named["NFNet|~|nf_block_2|~|conv1b:gain"] is (
    network.get_layer("nf_block_2").conv1b.gain
  )
  assert not any("/" in name or "." in name for name in named)


def test_names_can_be_split():
  key = ("NFNet/~/nf_block/~/squeeze_excite/~/linear_1", "w")
  assert split_name(join_name(*key)) == key


def test_variables_of_another_network_are_numbered():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  named = named_variables(network)
  assert list(named) == ["variable_0", "variable_1"]
  assert named["variable_1"] is network.variables[1]


def test_checkpoint_keys_hold_the_names(tmp_path):
  named = named_variables(NFNet("femto", 3))
  path = tf.train.Checkpoint(parameters=named).write(str(tmp_path / "c"))
  keys = [key for key, _ in tf.train.list_variables(path)]
  for name in named:
    assert f"parameters/{name}/.ATTRIBUTES/VARIABLE_VALUE" in keys


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


def save_checkpoint(model, directory):
  saver = Checkpointer(directory, model, seed=0, keep=1)
  saver.save()
  saver.wait()
  return saver.latest


def save(kind, model, folder):
  """Saves `model` and returns what a user would give to load_weights."""
  path = str(folder / kind)
  if kind in ("checkpoint", "workdir"):
    latest = save_checkpoint(model, str(folder / kind / "checkpoints"))
    return latest if kind == "checkpoint" else path
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
    return path
  saved = model.network if kind.startswith("network") else model
  (saved.save_weights if "weights" in kind else saved.save)(path)
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

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # .h5 is old


@pytest.fixture(scope="module")
def original():
  """The classifier that all files are saved from; not to be changed."""
  return source()


@pytest.fixture(scope="module")
def path_of(original, tmp_path_factory):
  """Returns a function that gives the path of a kind of file, saved once."""
  folder = tmp_path_factory.mktemp("files")
  return functools.lru_cache(lambda kind: save(kind, original, folder))


@pytest.mark.parametrize("kind", RAW + WITH_AVERAGES)
def test_every_kind_of_file_restores_its_weights(kind, original, path_of):
  network = NFNet("femto", 4)
  load_weights(network, path_of(kind))
  raw = original.network.variables
  expected = original.averages if kind in WITH_AVERAGES else raw
  for a, b in zip(network.variables, expected):
    np.testing.assert_array_equal(a, b)
  if kind in WITH_AVERAGES and kind != "SavedModel":
    load_weights(network, path_of(kind), averaged=False)
    for a, b in zip(network.variables, raw):
      np.testing.assert_array_equal(a, b)


# One of each reader and layout.
LAYOUTS = [
  "F0_haiku.npz",
  "checkpoint",
  "network.keras",
  "network.h5",
  "classifier.keras",
  "classifier_weights.h5",
]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_another_head_is_refused_or_kept(kind, path_of):
  network = NFNet("femto", 7)
  before = [v.numpy() for v in network.variables]
  with pytest.raises(UserError, match="only the classifier.*keep_head=False"):
    load_weights(network, path_of(kind))
  for a, b in zip(network.variables, before):
    np.testing.assert_array_equal(a, b)
  load_weights(network, path_of(kind), keep_head=False)
  *body, kernel, bias = zip(network.variables, before)
  assert all(np.abs(after - old).max() > 0 for after, old in body)
  for after, old in (kernel, bias):
    np.testing.assert_array_equal(after, old)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_network_without_top_takes_the_body(kind, original, path_of):
  network = NFNet("femto", include_top=False)
  with pytest.raises(UserError, match="2 left over .NFNet/~/linear:b, NFN"):
    load_weights(network, path_of(kind))
  load_weights(network, path_of(kind), keep_head=False)
  expected = original.network.variables
  if kind in WITH_AVERAGES:
    expected = original.averages
  for a, b in zip(network.variables, expected[:-2]):
    np.testing.assert_array_equal(a, b)


def test_f0_in_deepminds_layout_has_the_logits_of_deepminds_code(
  testdata, golden_parameters, tmp_path
):
  """Pickled, loaded, run at two sizes, and folded for serving."""
  shapes = json.loads((testdata / "f0_shapes.json").read_text())
  parameters = golden_parameters(
    {(m, n): tuple(s) for m, names in shapes.items() for n, s in names.items()}
  )
  path = tmp_path / "F0_haiku.npz"
  path.write_bytes(pickle.dumps(parameters))
  network = NFNet("F0")
  load_weights(network, str(path))
  pool = network.get_layer("pool").output
  both = keras.Model(network.input, [pool, network.output])
  for size in (64, 97):
    golden = np.load(testdata / f"f0_forward_{size}px.npz")
    x = np.random.default_rng(7).standard_normal([2, size, size, 3], np.float32)
    features, logits = both(x)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    np.testing.assert_allclose(features, golden["pool"], atol=1e-5)
    if size == 64:
      folded = FoldedNFNet(network)
      for a, name in zip(folded(x), ("pool", "logits")):
        error = np.abs(a - golden[name]).max() / np.abs(golden[name]).max()
        assert error < 1e-5, name
      # Of each block's gate one matrix has half its size; gains are gone.
      size = num_bytes(folded.parameters)
      assert size < 0.93 * 4 * network.count_params()
  values = get_parameters(network)
  assert values.keys() == parameters.keys()
  for module, arrays in parameters.items():
    assert values[module].keys() == arrays.keys()
    for name, array in arrays.items():
      np.testing.assert_array_equal(values[module][name], array)
  check_timms_layout(network, shapes, parameters, testdata, tmp_path)


def check_timms_layout(network, shapes, parameters, testdata, tmp_path):
  """Writes F0 as timm has it, and reads it back into other weights."""
  path = str(tmp_path / "model.safetensors")
  save_timm(network, path)
  arrays = read_safetensors(path)
  theirs = json.loads((testdata / "timm_f0_shapes.json").read_text())
  assert {name: list(x.shape) for name, x in arrays.items()} == theirs
  # Block 9 of the whole network is the first of stage 4.
  block = parameters["NFNet/~/nf_block_9/~/conv1b"]
  np.testing.assert_array_equal(
    arrays["stages.3.0.conv2b.weight"], block["w"].transpose(3, 2, 0, 1)
  )
  network.get_layer("stem_conv0").kernel.assign(np.ones([3, 3, 3, 16]))
  load_weights(network, path)
  values = get_parameters(network)
  for module, names in shapes.items():
    for name in names:
      np.testing.assert_array_equal(
        values[module][name], parameters[module][name]
      )


@pytest.mark.parametrize("name", ["network.weights.h5", "network.h5"])
def test_unknown_arrays_of_a_keras_file_are_left_over(name, path_of, tmp_path):
  path = tmp_path / name
  path.write_bytes(pathlib.Path(path_of(name)).read_bytes())
  with h5py.File(path, "a") as file:
    file["extra/kernel:0"] = np.zeros(3)
  with pytest.raises(UserError, match="1 left over .left over:extra/kernel:0"):
    load_weights(NFNet("femto", 4), str(path))


@pytest.mark.parametrize("kind", ["F0_haiku.npz", "classifier.keras"])
def test_another_variant_is_refused_with_lists(kind, path_of):
  path = path_of(kind)
  with pytest.raises(UserError) as error:
    load_weights(NFNet("nano", 4), path)
  text = str(error.value)
  assert "missing (NFNet/~/nf_block_4/" in text
  assert "NFNet/~/stem_conv1:w is (3, 3, 8, 8), not (3, 3, 8, 16)" in text
  assert "choose the variant" in text


def test_averages_of_a_classifier_restart_from_the_loaded_weights(
  original, path_of
):
  model = source()
  randomize(model.network.variables, 3)
  load_weights(model, path_of("F0_haiku.npz"))
  for pair in zip(model.averages, original.network.variables):
    np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize("kind", ["checkpoint", "classifier.keras"])
def test_files_of_frozen_stages_have_all_averages(kind, frozen, tmp_path):
  network = NFNet("femto", 4)
  load_weights(network, save(kind, frozen, tmp_path))
  for a, b in zip(network.variables, frozen.averages):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def frozen():
  return source(frozen="backbone")


@pytest.mark.parametrize("kind", ["SavedModel", "classifier.weights.h5"])
def test_averages_are_the_weights_before_training(kind, tmp_path):
  """Zeros would be exported and loaded silently."""
  network = NFNet("femto", 4)
  randomize(network.variables, 5)
  other = NFNet("femto", 4)
  load_weights(other, save(kind, Classifier(network), tmp_path))
  for a, b in zip(other.variables, network.variables):
    np.testing.assert_array_equal(a, b)


def test_path_may_hold_brackets_and_must_exist(tmp_path):
  path = tmp_path / "run[1]"
  path.mkdir()
  save_deepmind(NFNet("femto", 4), str(path / "w.npz"))
  options = {"keep_head": True, "averaged": True}
  InitWeights(path=str(path / "w.npz"), **options).check()
  with pytest.raises(UserError, match="does not exist"):
    InitWeights(path=str(tmp_path / "ru"), **options).check()


def test_folded_saved_model_is_refused_with_alternatives(original, tmp_path):
  path = export_saved_model(
    original, str(tmp_path / "1"), class_names=list("abcd")
  )
  with pytest.raises(UserError, match="is folded for serving.*checkpoint"):
    load_weights(NFNet("femto", 4), path)


def test_other_files_are_refused(tmp_path):
  network = NFNet("femto", 4)
  (tmp_path / "empty").mkdir()
  (tmp_path / "text.keras").write_text("weights")
  (tmp_path / "text.npz").write_text("weights")
  foreign = tf.train.Checkpoint(v=tf.Variable(1.0))
  for path, complaint in {
    "nowhere": "does not exist; expected a parameter file of DeepMind's",
    "empty": "holds no weights; expected",
    "text.keras": "cannot be read .File is not a zip file",
    "text.npz": "is not a complete pickle",
    foreign.save(str(tmp_path / "foreign")): "holds no parameters by name",
  }.items():
    with pytest.raises(UserError, match=complaint):
      load_weights(network, str(tmp_path / path))
  with pytest.raises(UserError, match="received a Sequential"):
    load_weights(keras.Sequential(), "F0_haiku.npz")
