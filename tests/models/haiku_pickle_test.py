"""What a parameter file may hold, and that a hostile one runs nothing."""

import collections
import os
import pickle

import numpy as np
import pytest

from nfnets_tf.models.haiku_pickle import read_parameters, write_parameters
from nfnets_tf.ops.errors import UserError

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


class Calls:
  """Pickles to a call of any function."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("mapping", [dict, collections.OrderedDict])
def test_reads_what_every_protocol_writes(protocol, mapping, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps(mapping(PARAMETERS), protocol=protocol))
  got = read_parameters(str(path))
  assert got.keys() == PARAMETERS.keys()
  for module, arrays in PARAMETERS.items():
    assert got[module].keys() == arrays.keys()
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[module][name], array)
      assert got[module][name].dtype == array.dtype


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
    (Calls(Calls, 1), "haiku_pickle_test.Calls"),
  ],
)
def test_nothing_else_is_admitted(call, name, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps({"m": {"w": call}}))
  with pytest.raises(UserError, match=f"asks for .*{name}"):
    read_parameters(str(path))


def test_no_array_is_made_larger_than_the_file(tmp_path):
  reconstruct, _, _ = np.zeros(1).__reduce__()
  path = tmp_path / "w.npz"
  huge = Calls(reconstruct, np.ndarray, (10**15,), b"b")
  path.write_bytes(pickle.dumps({"m": {"w": huge}}))
  with pytest.raises(UserError, match="asks for .*ndarray.* of shape"):
    read_parameters(str(path))


@pytest.mark.parametrize(
  "content",
  [
    [1.0],
    {"m": np.zeros(3)},
    {"m": {"w": np.array(["text"])}},
    {"m": {"w": np.array([None, 1.0], object)}},
    {"m": {"w": [1.0, 2.0]}},
    {1: {"w": np.zeros(3)}},
  ],
  ids=str,
)
def test_something_else_than_parameters_is_refused(content, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(UserError, match="something else than parameters"):
    read_parameters(str(path))


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_a_torn_file_is_no_whole_pickle(end, tmp_path):
  path = tmp_path / "w.npz"
  path.write_bytes(pickle.dumps(PARAMETERS)[:end])
  with pytest.raises(UserError, match="is no whole pickle .*download it again"):
    read_parameters(str(path))


def test_an_ordinary_reader_opens_what_is_written(tmp_path):
  path = tmp_path / "w.npz"
  write_parameters(str(path), PARAMETERS)
  got = pickle.loads(path.read_bytes())
  for module, arrays in PARAMETERS.items():
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[module][name], array)
  assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]
  with pytest.raises(UserError, match="exists already and is not overwritten"):
    write_parameters(str(path), PARAMETERS)
