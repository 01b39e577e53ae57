"""A hostile file runs nothing and changes nothing."""

import io
import os
import pickle

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models import array_pickle
from nfnets_tf.models.haiku_pickle import read_parameters

PARAMETERS = {"m": {"w": np.ones([2, 3], np.float32)}}


class Calls:
  """Pickles to a call of any function."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


def test_load_gives_arrays_and_plain_containers():
  content = pickle.dumps({"m": [{"w": np.float32([1, 2])}, (1, None, "x")]})
  found = array_pickle.load(io.BytesIO(content))
  np.testing.assert_array_equal(found["m"][0]["w"].array, [1, 2])
  assert found["m"][1] == (1, None, "x")
  with pytest.raises(array_pickle.RefusedError, match="builtins.print"):
    array_pickle.load(io.BytesIO(pickle.dumps(print)))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_file_is_refused_by_name_and_runs_nothing(protocol, tmp_path):
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
    (Calls(Calls, 1), "array_pickle_test.Calls"),
  ],
)
def test_nothing_else_is_admitted(call, name, tmp_path):
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
    (np.array(["text"]), "elements of the type 'U4'"),
    (np.array([None, 1.0], object), "elements of the type 'O8'"),
    (np.arange(3), "elements of the type 'i8'"),
    (Calls(np.dtype, "O"), "elements of the type 'O'"),
    (Built(np.dtype, ("V8", False, True), POINTERS), "elements of the type"),
    (Built(np.dtype, ("f8", False, True), POINTERS), "elements that are"),
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
def test_no_array_is_made_of_pointers_or_of_more_than_the_file(
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
def test_what_is_admitted_cannot_be_changed(module, name, tmp_path):
  """A state of two dictionaries sets attributes where nothing prevents it."""
  path = tmp_path / "w.npz"
  state = pickle.dumps((None, {"__defaults__": ("latin1",)}), protocol=0)
  named = f"c{module}\n{name}\n".encode()
  path.write_bytes(named + state.removesuffix(b".") + b"b.")
  with pytest.raises(UserError, match="asks for another state of"):
    read_parameters(str(path))


@pytest.mark.parametrize("opcode", [b"B\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f"])
def test_a_length_beyond_the_file_reads_no_further(opcode, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(opcode + b"few")
  with pytest.raises(UserError, match="no whole pickle .*truncated"):
    read_parameters(str(path))
