"""Groups, learning rate multipliers and frozen stages."""

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet, layers_by_stage, variables_by_stage
from nfnets_tf.optim.param_groups import (
  ParamGroup,
  freeze,
  group_of,
  lr_multiplier,
  set_group,
  set_layer_decay,
  set_lr_multiplier,
)
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

STAGES = (
  "stem",
  "stage1",
  "stage2",
  "stage3",
  "stage4",
  "final_conv",
  "classifier",
)


def test_rank_decides_without_a_group():
  assert group_of(tf.Variable(tf.zeros([2, 3]))) is ParamGroup.KERNEL
  assert group_of(tf.Variable(tf.zeros([3]))) is ParamGroup.VECTOR
  assert group_of(tf.Variable(0.0)) is ParamGroup.VECTOR


def test_group_overrides_rank_under_a_strategy():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    variable = set_group(tf.Variable(tf.zeros([2, 3])), ParamGroup.HEAD_KERNEL)
  assert group_of(variable) is ParamGroup.HEAD_KERNEL


def test_clipped_and_decayed_groups():
  treatments = {group: (group.clipped, group.decayed) for group in ParamGroup}
  assert treatments == {
    ParamGroup.KERNEL: (True, True),
    ParamGroup.HEAD_KERNEL: (False, True),
    ParamGroup.VECTOR: (True, False),
  }


def test_lr_multiplier_defaults_to_one():
  variable = tf.Variable(0.0)
  assert lr_multiplier(variable) == 1.0
  assert lr_multiplier(set_lr_multiplier(variable, 0.25)) == 0.25


def train(**options):
  """Returns ({stage: how far it moved in one step}, the classifier)."""
  keras.utils.set_random_seed(0)
  network = NFNet("femto", 4, skip_gain=1.0)
  model = Classifier(network, **options)
  model.compile(SGD(0.1, clipping=None, momentum=0.0, weight_decay=0.0))
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
  stages = variables_by_stage(network)
  before = {k: [v.numpy() for v in vs] for k, vs in stages.items()}
  model.train_on_batch(images, r.integers(0, 4, 8))
  moved = {
    name: np.sqrt(
      sum(((v - b) ** 2).numpy().sum() for v, b in zip(vs, before[name]))
    )
    for name, vs in stages.items()
  }
  return moved, model


def test_frozen_stages_and_their_averages_do_not_move():
  moved, model = train(frozen="backbone", ema_decay=0.9)
  assert [name for name in STAGES if moved[name] > 0] == ["classifier"]
  for average, variable in zip(model.averages, model.network.variables[:-2]):
    np.testing.assert_array_equal(average, variable)
  assert len(model.averages) == 97


def test_layer_decay_sets_the_multiplier_of_each_stage():
  network = NFNet("femto", 4)
  Classifier(network, layer_decay=0.5, ema_decay=None)
  stages = variables_by_stage(network)
  assert tuple(stages) == STAGES
  for distance, name in enumerate(reversed(STAGES)):
    assert {lr_multiplier(v) for v in stages[name]} == {0.5**distance}
  Classifier(network, ema_decay=None)
  assert {lr_multiplier(variable) for variable in network.variables} == {1}


def test_saved_classifier_keeps_frozen_stages_and_multipliers(tmp_path):
  model = Classifier(NFNet("femto", 4), frozen=["stage2"], layer_decay=0.5)
  model.network.get_layer("stem_conv0").trainable = False  # by hand
  model.compile(SGD(0.1))
  model.save(tmp_path / "c.keras")
  again = keras.models.load_model(tmp_path / "c.keras")
  stages = variables_by_stage(again.network)
  stage2 = layers_by_stage(again.network)["stage2"]
  assert not any(layer.trainable for layer in stage2)
  assert {lr_multiplier(v) for v in stages["final_conv"]} == {0.5}
  assert {lr_multiplier(v) for v in stages["classifier"]} == {1.0}
  for a, b in zip(again.averages, model.averages):
    np.testing.assert_array_equal(a, b)


def test_new_classifier_unfreezes_the_network():
  network = NFNet("femto", 4)
  Classifier(network, frozen="backbone", ema_decay=None)
  assert len(network.trainable_variables) == 2
  Classifier(network, frozen=["stem", "stage2"], ema_decay=None)
  trained = {id(v) for v in network.trainable_variables}
  stages = variables_by_stage(network)
  frozen = [k for k in STAGES if not trained & set(map(id, stages[k]))]
  assert frozen == ["stem", "stage2"]
  Classifier(network, ema_decay=None)
  assert len(network.trainable_variables) == 97
  network.get_layer("stem_conv0").trainable = False
  Classifier(network, ema_decay=None)
  assert len(network.trainable_variables) == 94


def test_unknown_stages_and_decays_are_refused():
  stages = layers_by_stage(NFNet("femto", 4))
  with pytest.raises(UserError, match="names 'stage5', .* 'stage4', .*'backb"):
    freeze(stages, ["stage5"])
  with pytest.raises(UserError, match="names every stage"):
    freeze(stages, list(STAGES))
  with pytest.raises(UserError, match="'stem'.*expected an NFNet"):
    freeze({}, ["stem"])
  with pytest.raises(UserError, match="layer_decay = 0.5 needs an NFNet"):
    set_layer_decay({}, 0.5)
  for decay in (0.0, 1.5):
    with pytest.raises(UserError, match=f"layer_decay = {decay} is invalid"):
      set_layer_decay(stages, decay)
  freeze({}, ())
  set_layer_decay({}, 1.0)
