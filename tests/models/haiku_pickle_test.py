"""What a parameter file may hold."""

import collections
import pickle

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models.haiku_pickle import read_parameters, write_parameters

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
