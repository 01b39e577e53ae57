import numpy as np
import pytest
from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.parts import layers_by_part, variables_by_part
from nfnets_tf.ops.roles import rate_of
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.layerwise import freeze, mark_rates, prepare

PARTS = (
  "stem",
  "stage1",
  "stage2",
  "stage3",
  "stage4",
  "final_conv",
  "classifier",
)


def train(**options):
  """Returns how far each part moved in two steps, and its averages' number."""
  keras.utils.set_random_seed(0)
  network = NFNet("femto", 4)
  for variable in network.variables:
    if variable.name.endswith("skip_gain:0"):
      variable.assign(1.0)
  model = Classifier(network, **options)
  model.compile(SGD(0.1, clipping=None, momentum=0.0, weight_decay=0.0))
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
  before = {k: [v.numpy() for v in vs] for k, vs in by_part(model).items()}
  model.train_on_batch(images, r.integers(0, 4, 8))
  moved = {
    name: np.sqrt(
      sum(((v - b) ** 2).numpy().sum() for v, b in zip(vs, before[name]))
    )
    for name, vs in by_part(model).items()
  }
  return moved, model


def by_part(model):
  return variables_by_part(model.network)


def test_frozen_parts_and_their_averages_do_not_move():
  moved, model = train(frozen="backbone", ema_decay=0.9)
  assert [name for name in PARTS if moved[name] > 0] == ["classifier"]
  for average, variable in zip(model.averages, model.network.variables[:-2]):
    np.testing.assert_array_equal(average, variable)
  assert len(model.averages) == 97
  moved, _ = train(frozen=["stem", "stage2"])
  assert {name for name in PARTS if moved[name] == 0} == {"stem", "stage2"}


def test_each_part_learns_at_its_share_of_the_rate():
  """Without momentum and clipping a step is the rate times the gradient."""
  plain, _ = train()
  slow, _ = train(layer_decay=0.5)
  for distance, name in enumerate(reversed(PARTS)):
    assert slow[name] / plain[name] == pytest.approx(0.5**distance, rel=1e-3)


def test_a_saved_classifier_stays_frozen_and_slow(tmp_path):
  model = Classifier(NFNet("femto", 4), frozen=["stem"], layer_decay=0.5)
  model.compile(SGD(0.1))
  model.save(tmp_path / "c.keras")
  again = keras.models.load_model(tmp_path / "c.keras")
  parts = by_part(again)
  stem = layers_by_part(again.network)["stem"]
  assert not any(layer.trainable for layer in stem)
  assert {rate_of(v) for v in parts["final_conv"]} == {0.5}
  assert {rate_of(v) for v in parts["classifier"]} == {1.0}


def test_the_head_first_and_then_everything():
  network = NFNet("femto", 4)
  first = Classifier(network, frozen="backbone")
  first.compile(SGD(0.1))
  assert len(network.trainable_variables) == 2
  second = Classifier(network)
  second.compile(SGD(0.1))
  assert len(network.trainable_variables) == 97
  network.get_layer("stem_conv0").trainable = False
  assert len(Classifier(network).network.trainable_variables) == 94


def test_a_layer_frozen_by_hand_is_saved_and_loaded(tmp_path):
  network = NFNet("femto", 4)
  network.get_layer("stem_conv0").trainable = False
  model = Classifier(network)
  model.compile(SGD(0.1))
  model.save(tmp_path / "c.keras")
  again = keras.models.load_model(tmp_path / "c.keras")
  for a, b in zip(again.averages, model.averages):
    np.testing.assert_array_equal(a, b)


def test_what_the_network_has_not_is_refused():
  network = NFNet("femto", 4)
  with pytest.raises(UserError, match="names 'stage5', .* 'stage4', .*'backb"):
    freeze(network, ["stage5"])
  with pytest.raises(UserError, match="names every part"):
    freeze(network, list(PARTS))
  other = keras.Sequential()
  with pytest.raises(UserError, match="'stem'.*expected an NFNet"):
    prepare(other, frozen=["stem"], layer_decay=1.0)
  with pytest.raises(UserError, match="layer_decay = 0.5 needs an NFNet"):
    mark_rates(other, 0.5)
  for decay in (0.0, 1.5):
    with pytest.raises(UserError, match=f"layer_decay = {decay} cannot"):
      mark_rates(network, decay)
  prepare(other, frozen=(), layer_decay=1.0)
