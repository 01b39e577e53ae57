"""Every public Keras class: get_config, serialization, save and load."""

import pickle

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data import (
  augmentation,
  catalogs,
  checking,
  data_service,
  dataset_info,
  duplicates,
  listing,
  pipeline,
  preprocessing,
  shuffle,
  sources,
  tfrecords,
  validation,
)
from nfnets_tf.models import layers, variants
from nfnets_tf.models.nfnet import NFBlock, NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.schedules import WarmupCosine
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.scaling import engines
from nfnets_tf.scaling.allocation import Exponents
from nfnets_tf.scaling.compute import TpuV4
from nfnets_tf.scaling.loss_surface import Surface
from nfnets_tf.scaling.power_laws import Extrapolation, Law
from nfnets_tf.scaling.sweep import GridSearch, Sweep
from nfnets_tf.serving.export import Exporter
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.eval_report import ClassificationReport
from nfnets_tf.train.pretrained import Start
from nfnets_tf.train.recovery import Recovery
from nfnets_tf.train.run_dir import RunDir

LAYERS = {
  "WSConv2D": lambda: layers.WSConv2D(8, 3, strides=2, groups=2),
  "ScaledActivation": lambda: layers.ScaledActivation("silu"),
  "SqueezeExcite": lambda: layers.SqueezeExcite(0.25),
  "StochasticDepth": lambda: layers.StochasticDepth(0.3),
  "Dropout": lambda: layers.Dropout(0.3),
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
  ),
}
OTHERS = {
  "NFNet": lambda: NFNet(
    "femto", 3, drop_rate=0.1, stochdepth_rate=0.2, skip_gain=0.5
  ),
  "Classifier": lambda: Classifier(
    NFNet("femto", 3),
    ema_decay=0.5,
    sam=SAM(0.1),
    micro_batches=2,
    layer_decay=0.5,
    frozen=("stem",),
  ),
  "SGD": lambda: SGD(0.1, clipping=0.2),
  "SAM": lambda: SAM(0.1, scope="global", ascent_fraction=0.2, every=2),
  "WarmupCosine": lambda: WarmupCosine(peak=1, warmup_steps=2, total_steps=9),
}
PLAIN = {
  "Variant": lambda: variants.variant("F7+"),
  "Record": lambda: tfrecords.Record(b"x", 1, "a", "b", "png"),
  "Fields": lambda: tfrecords.Fields(first_label=1),
  "SplitInfo": lambda: dataset_info.SplitInfo(("a",), (1,), 2, ()),
  "MixUp": lambda: augmentation.MixUp(alpha=0.2),
  "CutMix": lambda: augmentation.CutMix(),
  "Augmentation": lambda: augmentation.Augmentation(multiplicity=2),
  "DataStream": lambda: pipeline.DataStream(8, 20, 0),
  "RandomErasing": lambda: augmentation.RandomErasing(probability=0.5),
  "DataService": lambda: data_service.DataService(addresses=["a:1"]),
  "NearDuplicates": lambda: duplicates.NearDuplicates([1, 2], 3),
  "InvalidRecord": lambda: validation.InvalidRecord("cause"),
  "RecordValidator": lambda: validation.RecordValidator(tfrecords.Fields(), 3),
  "ShardFindings": lambda: checking.ShardFindings("x"),
  "DigitsCatalog": lambda: catalogs.DigitsCatalog(image_size=8),
  "InceptionCrop": lambda: preprocessing.InceptionCrop(image_size=8),
  "Flip": lambda: preprocessing.Flip(),
  "Shift": lambda: preprocessing.Shift(pixels=2),
  "Resize": lambda: preprocessing.Resize(image_size=8),
  "SquashCenterCrop": lambda: preprocessing.SquashCenterCrop(image_size=8),
  "Digits": lambda: sources.Digits(directory="x", image_size=8),
  "ShardedShuffle": lambda: shuffle.ShardedShuffle(
    ["a"], [1], seed=0, shuffle_buffer=1
  ),
  "TpuV4": lambda: TpuV4(utilization=0.3),
  "RunDir": lambda: RunDir("x"),
  "Listing": lambda: listing.Listing("x", ("a",), {}, "key"),
  "Folder": lambda: sources.Folder(
    directory="x", heldout_share=0.1, shards="y"
  ),
  "Recovery": lambda: Recovery(in_a_row=3, rollbacks=2),
  "Start": lambda: Start(path="x", keep_head=True, averaged=False),
  "ClassificationReport": lambda: ClassificationReport(most_wrong=3),
  "Law": lambda: Law(4, 0.04, 0, False, 9, 0.01, 0.9, ((3, 0.05, 0),)),
  "Exponents": lambda: Exponents(0.4, 0.6, 5, 0.01, 7),
  "Surface": lambda: Surface(2, 0.5, 1, 0.3, 0.5, 1, 10, 9, 0.01),
  "Extrapolation": lambda: Extrapolation(50, 5, (64,), (0.8,), None, None),
  "GridSearch": lambda: GridSearch(
    macro="A", start=0.1, factor=2, both_sides=True, most_trials=3
  ),
  "LocalProcesses": lambda: engines.LocalProcesses(at_once=2),
  "Ray": lambda: engines.Ray(at_once=2, address=None, resources={"CPU": 1}),
  "Exporter": lambda: Exporter(dtype="bfloat16", formats=["tflite"]),
  "Sweep": lambda: Sweep(
    grid=[{"A": 1}],
    tuning=None,
    engine=None,
    loss="loss",
    poll_seconds=1,
    price=None,
    report=None,
  ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_survives_its_config_and_a_saved_model(name, tmp_path):
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
def test_others_survive_serialization(name):
  thing = OTHERS[name]()
  data = keras.saving.serialize_keras_object(thing)
  again = keras.saving.deserialize_keras_object(data)
  assert type(again) is type(thing)

  def plain(config):
    skipped = ("network", "sam")  # objects, serialized in their turn
    return {k: v for k, v in config.items() if k not in skipped}

  assert plain(again.get_config()) == plain(thing.get_config())


def randomized():
  network = NFNet("femto", 3, stochdepth_rate=0.2)
  for weight in network.weights:
    weight.assign(tf.random.normal(weight.shape))
  return network


def test_a_network_survives_a_keras_file(tmp_path):
  network = randomized()
  network.save(tmp_path / "network.keras")
  again = keras.models.load_model(tmp_path / "network.keras")
  images = tf.random.normal([2, 32, 32, 3])
  np.testing.assert_array_equal(again(images), network(images))
  assert again.get_config() == network.get_config()


@pytest.mark.parametrize("name", ["n.h5", "n.weights.h5"])
def test_its_weights_survive_hdf5(name, tmp_path):
  network, again = randomized(), NFNet("femto", 3)
  network.save_weights(str(tmp_path / name))
  again.load_weights(str(tmp_path / name))
  for old, new in zip(network.get_weights(), again.get_weights()):
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_objects_can_be_pickled(name):
  thing = PLAIN[name]()
  again = pickle.loads(pickle.dumps(thing))
  assert type(again) is type(thing) and vars(again) == vars(thing)
