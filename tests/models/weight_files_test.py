"""Parameter files: all layouts are read, and hostile ones run nothing."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.weight_files import (
  read_keras_arrays,
  read_parameters,
  write_parameters,
)

R = np.random.default_rng(0)
PARAMETERS = {
  "NFNet/~/stem_conv0": {
    "w": R.standard_normal([3, 3, 3, 16]).astype(np.float32),
    "columns first": np.asfortranarray(R.standard_normal([3, 4])),
  },
  "NFNet/~/nf_block": {
    "skip_gain": np.array(0.5, np.float32),
    "scalar": np.float32(0.25),
  },
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("mapping", [dict, collections.OrderedDict])
def test_reads_every_pickle_protocol(protocol, mapping, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps(mapping(PARAMETERS), protocol=protocol))
  got = read_parameters(str(path))
  assert got.keys() == PARAMETERS.keys()
  for module, arrays in PARAMETERS.items():
    assert got[module].keys() == arrays.keys()
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[module][name], array)
      assert got[module][name].dtype == array.dtype


@pytest.mark.parametrize(
  "content",
  [
    [1.0],
    {"m": np.zeros(3)},
    {"m": {"w": [1.0, 2.0]}},
    {1: {"w": np.zeros(3)}},
  ],
  ids=str,
)
def test_other_content_is_refused(content, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(UserError, match="does not hold parameters"):
    read_parameters(str(path))


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_truncated_file_is_refused(end, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps(PARAMETERS)[:end])
  with pytest.raises(
    UserError, match="not a complete pickle.*download it again"
  ):
    read_parameters(str(path))


def test_written_file_is_an_ordinary_pickle(tmp_path):
  path = tmp_path / "w.npz"
  write_parameters(str(path), PARAMETERS)
  got = pickle.loads(path.read_bytes())
  for module, arrays in PARAMETERS.items():
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[module][name], array)
  assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]
  with pytest.raises(UserError, match="exists and is not overwritten"):
    write_parameters(str(path), PARAMETERS)


class Calls:
  """Pickles to a call of any function."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_file_is_refused_by_name_and_runs_nothing(protocol, tmp_path):
  mark = tmp_path / "was run"
  bomb = Calls(os.system, f"touch '{mark}'")
  pickle.loads(pickle.dumps(bomb, protocol=protocol))
  assert mark.exists()  # what an ordinary reader does
  mark.unlink()
  path = tmp_path / "w.npz"
  for content in (bomb, {"module": {"w": bomb}}, {bomb: PARAMETERS}):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system"):
      read_parameters(str(path))
  assert not mark.exists()


@pytest.mark.parametrize(
  "call, name",
  [
    (Calls(eval, "1"), "builtins.eval"),
    (Calls(getattr, {}, "keys"), "builtins.getattr"),
    (Calls(np.load, "x", None, True), "numpy.load"),
    (Calls(np.array, [1.0]), "numpy.*array"),
    (Calls(Calls, 1), "weight_files_test.Calls"),
  ],
)
def test_every_other_function_is_refused(call, name, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps({"m": {"w": call}}))
  with pytest.raises(UserError, match=f"asks for .*{name}"):
    read_parameters(str(path))


class Built(Calls):
  """Pickles to a call whose result is given a state, and items."""

  def __init__(self, function, arguments, state=None, items=None):
    self._call = function, arguments, state, None, items


RECONSTRUCT = np.zeros(1).__reduce__()[0]
F4 = np.dtype("f4")
POINTERS = (3, "|", None, ("a",), {"a": (F4, 0)}, 8, 1, 0)


@pytest.mark.parametrize(
  "content, words",
  [
    (Calls(np.ndarray, (1,), "O", bytes(8)), "call of numpy.ndarray"),
    (Calls(np.ndarray, (2**36,), "f4"), "call of numpy.ndarray"),
    (
      Built(np.ndarray, ((1,), "O"), None, iter([(0, 1)])),
      "call of numpy.ndarray",
    ),
    (np.array(["text"]), "elements of type 'U4'"),
    (np.array([None, 1.0], object), "elements of type 'O8'"),
    (np.arange(3), "elements of type 'i8'"),
    (Calls(np.dtype, "O"), "elements of type 'O'"),
    (Built(np.dtype, ("V8", False, True), POINTERS), "elements of type"),
    (Built(np.dtype, ("f8", False, True), POINTERS), "elements described"),
    (
      Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9,), F4, False, b"1")),
      r"array of shape \(9,\) out of 1 bytes",
    ),
    (
      Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1,), F4, False, b"")),
      r"array of shape \(-1,\)",
    ),
    (
      Built(
        RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), 4, False, b"1234")
      ),
      "an array of bytes",
    ),
  ],
)
def test_arrays_of_pointers_or_of_missing_bytes_are_refused(
  content, words, tmp_path
):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps({"m": {"w": content}}))
  with pytest.raises(UserError, match=f"asks for .*{words}"):
    read_parameters(str(path))


@pytest.mark.parametrize(
  "module, name",
  [
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
  ],
)
def test_allowed_names_cannot_be_modified(module, name, tmp_path):
  """A state of two dictionaries sets attributes where nothing prevents it."""
  path = tmp_path / "w.npz"
  state = pickle.dumps((None, {"__defaults__": ("latin1",)}), protocol=0)
  named = f"c{module}\n{name}\n".encode()
  path.write_bytes(named + state.removesuffix(b".") + b"b.")
  with pytest.raises(UserError, match="asks for a change of a function"):
    read_parameters(str(path))


@pytest.mark.parametrize("opcode", [b"B\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f"])
def test_forged_length_reads_no_further_than_the_file(opcode, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(opcode + b"few")
  with pytest.raises(UserError, match="not a complete pickle .*truncated"):
    read_parameters(str(path))


@pytest.fixture(scope="module")
def model():
  model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  model.compile("adam", "mse", metrics=["mae"])
  model.train_on_batch(np.ones([4, 3]), np.ones([4, 2]))
  return model


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras advises .keras
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_keras_arrays_leave_out_metrics_and_optimizer(model, name, tmp_path):
  path = str(tmp_path / name)
  (model.save_weights if "weights" in name else model.save)(path)
  arrays = read_keras_arrays(path)
  assert sorted(a.shape for a in arrays.values()) == [(2,), (3, 2)]


def test_keras_configuration_is_not_built(model, tmp_path):
  """Keras' loader would import and call what a file's configuration names."""
  path, hostile = str(tmp_path / "c.keras"), str(tmp_path / "h.keras")
  model.save(path)
  config = '{"module": "os", "class_name": "system", "config": "touch x"}'
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
    new.writestr("config.json", config)
    new.writestr("model.weights.h5", old.read("model.weights.h5"))
  assert len(read_keras_arrays(hostile)) == 2


@pytest.mark.parametrize("name", ["x.keras", "x.h5"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x89HDF\r\n"])
def test_damaged_keras_files_are_refused(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match="cannot be read .*save the model again"):
    read_keras_arrays(str(path))


def test_keras_archive_without_weights_is_refused(tmp_path):
  path = tmp_path / "x.keras"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("config.json", "{}")
  with pytest.raises(UserError, match="no item named 'model.weights.h5'"):
    read_keras_arrays(str(path))
