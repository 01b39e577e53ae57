from tensorflow import keras

from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.parts import HEAD, layers_by_part, variables_by_part

PARTS = ("stem", "stage1", "stage2", "stage3", "stage4", "final_conv", HEAD)


def test_every_variable_is_in_one_part():
  network = NFNet("micro", 4)
  parts = variables_by_part(network)
  assert tuple(parts) == PARTS
  listed = [id(v) for variables in parts.values() for v in variables]
  assert sorted(listed) == sorted(id(v) for v in network.variables)


def test_a_stage_has_its_blocks():
  parts = layers_by_part(NFNet("micro", 4))
  names = [layer.name for layer in parts["stage3"]]
  assert names == ["nf_block_3", "nf_block_4", "nf_block_5"]
  assert [len(parts[name]) for name in PARTS] == [4, 1, 2, 3, 1, 1, 1]


def test_without_the_top_there_is_no_classifier_and_without_nfnet_no_part():
  headless = NFNet("femto", include_top=False)
  assert tuple(variables_by_part(headless)) == PARTS[:-1]
  assert variables_by_part(keras.Sequential()) == {}
