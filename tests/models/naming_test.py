import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.naming import join_name, named_variables, split_name
from nfnets_tf.models.nfnet import NFNet


@pytest.mark.parametrize("include_top", [True, False])
def test_an_nfnets_variables_have_deepminds_names(include_top):
  network = NFNet("femto", 3, include_top=include_top)
  named = named_variables(network)
  assert {id(v) for v in named.values()} == {id(v) for v in network.variables}
  assert named["NFNet|~|nf_block_2|~|conv1b:gain"] is (
    network.get_layer("nf_block_2").conv1b.gain
  )
  assert not any("/" in name or "." in name for name in named)


def test_names_can_be_taken_apart():
  key = ("NFNet/~/nf_block/~/squeeze_excite/~/linear_1", "w")
  assert split_name(join_name(*key)) == key


def test_another_networks_variables_are_numbered():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  named = named_variables(network)
  assert list(named) == ["variable_0", "variable_1"]
  assert named["variable_1"] is network.variables[1]


def test_a_checkpoint_has_the_names_in_its_keys(tmp_path):
  named = named_variables(NFNet("femto", 3))
  path = tf.train.Checkpoint(parameters=named).write(str(tmp_path / "c"))
  keys = [key for key, _ in tf.train.list_variables(path)]
  for name in named:
    assert f"parameters/{name}/.ATTRIBUTES/VARIABLE_VALUE" in keys
