import json

import numpy as np
import pytest

from nfnets_tf.models import cost, deepmind, nfnet


def test_table_has_exactly_deepminds_names_and_shapes(testdata):
  shapes = json.loads((testdata / "f0_shapes.json").read_text())
  expected = {
    (module, name): tuple(shape)
    for module, names in shapes.items()
    for name, shape in names.items()
  }
  network = cost.abstractly(lambda: nfnet.NFNet("F0"))
  table = deepmind.parameter_table(network)
  assert {key: tuple(v.shape) for key, v in table.items()} == expected
  assert len({id(v) for v in table.values()}) == len(network.variables)


def test_misfits_are_listed_and_nothing_is_assigned(golden_parameters):
  network = nfnet.NFNet("femto", 3)
  table = deepmind.parameter_table(network)
  given = golden_parameters({key: tuple(v.shape) for key, v in table.items()})
  del given["NFNet/~/linear"]["b"]
  given["NFNet/~/linear"]["w"] = np.zeros([2, 2])
  given["NFNet/~/extra"] = {"w": np.zeros(1)}
  before = network.get_weights()
  with pytest.raises(ValueError) as error:
    deepmind.assign_parameters(network, given)
  for fault in (
    "1 missing (NFNet/~/linear:b)",
    "1 left over (NFNet/~/extra:w)",
    "1 of another shape (NFNet/~/linear:w is (2, 2), not (64, 3))",
  ):
    assert fault in str(error.value)
  for old, new in zip(before, network.get_weights()):
    np.testing.assert_array_equal(old, new)


def test_what_is_assigned_is_what_is_read(golden_parameters):
  network = nfnet.NFNet("femto", 3)
  table = deepmind.parameter_table(network)
  given = golden_parameters({key: tuple(v.shape) for key, v in table.items()})
  deepmind.assign_parameters(network, given)
  got = deepmind.parameters_of(network)
  assert got.keys() == given.keys()
  for module, arrays in given.items():
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[module][name], array)
