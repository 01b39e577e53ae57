"""Every public Keras class: get_config, serialization, save and load."""

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models import dropout, layers
from nfnets_tf.models.layers import NFBlock
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.adaptive_clipping import AGC
from nfnets_tf.optim.pruning import Pruning
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

LAYERS = {
  "WSConv2D": lambda: layers.WSConv2D(8, 3, strides=2, groups=2, sparse="all"),
  "ScaledActivation": lambda: layers.ScaledActivation("silu"),
  "SqueezeExcite": lambda: layers.SqueezeExcite(0.25),
  "StochasticDepth": lambda: dropout.StochasticDepth(0.3),
  "Dropout": lambda: dropout.Dropout(0.3),
  "SpatialMean": lambda: layers.SpatialMean(),
  "ClassifierHead": lambda: layers.ClassifierHead(5),
  "NFBlock": lambda: NFBlock(
    8,
    bottleneck=4,
    groups=2,
    beta=0.9,
    strides=2,
    stochdepth_rate=0.1,
    skip_gain=0.5,
    recompute=True,
    sparse="live",
  ),
}
OTHERS = {
  "NFNet": lambda: NFNet(
    "femto",
    3,
    drop_rate=0.1,
    stochdepth_rate=0.2,
    skip_gain=0.5,
    recompute=["stage2"],
    sparse="live",
  ),
  "Classifier": lambda: Classifier(
    NFNet("femto", 3, sparse="live"),
    ema_decay=0.5,
    sam=SAM(0.1),
    pruning=Pruning("2:4", total_steps=9, begin=0.1),
    micro_batches=2,
    layer_decay=0.5,
    frozen=("stem",),
  ),
  "SGD": lambda: SGD(0.1, clipping=0.2),
  "SAM": lambda: SAM(0.1, scope="global", ascent_fraction=0.2, every=2),
  "Pruning": lambda: Pruning(
    0.5, total_steps=9, begin=0.1, end=0.2, interval=0.3
  ),
  "AGC": lambda: AGC(keras.optimizers.AdamW(0.1), 0.2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_serialize_and_reload(name, tmp_path):
  layer = LAYERS[name]()
  again = keras.layers.deserialize(keras.layers.serialize(layer))
  assert type(again) is type(layer)
  assert again.get_config() == layer.get_config()
  shape = (6,) if name in ("ClassifierHead", "Dropout") else (8, 8, 4)
  inputs = keras.Input(shape)
  model = keras.Model(inputs, layer(inputs))
  for weight in model.weights:
    weight.assign(tf.random.normal(weight.shape))
  path = str(tmp_path / "model.keras")
  model.save(path)
  x = tf.random.normal([2, *shape])
  np.testing.assert_array_equal(keras.models.load_model(path)(x), model(x))


@pytest.mark.parametrize("name", OTHERS)
def test_other_objects_serialize(name):
  thing = OTHERS[name]()
  data = keras.saving.serialize_keras_object(thing)
  again = keras.saving.deserialize_keras_object(data)
  assert type(again) is type(thing)

  def plain(config):
    skipped = ("network", "sam", "pruning")  # objects, serialized in their turn
    return {k: v for k, v in config.items() if k not in skipped}

  assert plain(again.get_config()) == plain(thing.get_config())


def randomized():
  network = NFNet("femto", 3, stochdepth_rate=0.2)
  for weight in network.weights:
    weight.assign(tf.random.normal(weight.shape))
  return network


def test_a_network_reloads_from_a_keras_file(tmp_path):
  network = randomized()
  network.save(tmp_path / "network.keras")
  again = keras.models.load_model(tmp_path / "network.keras")
  images = tf.random.normal([2, 32, 32, 3])
  np.testing.assert_array_equal(again(images), network(images))
  assert again.get_config() == network.get_config()


@pytest.mark.parametrize("name", ["n.h5", "n.weights.h5"])
def test_weights_reload_from_hdf5(name, tmp_path):
  network, again = randomized(), NFNet("femto", 3)
  network.save_weights(str(tmp_path / name))
  again.load_weights(str(tmp_path / name))
  for old, new in zip(network.get_weights(), again.get_weights()):
    np.testing.assert_array_equal(old, new)
