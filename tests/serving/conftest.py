"""A classifier with trained-like weights, class names and images."""

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier


def perturb(variables, seed):
  """Moves variables, so that no gain is 1 and no bias 0."""
  r = np.random.default_rng(seed)
  for variable in variables:
    noise = r.standard_normal(variable.shape, dtype=np.float32)
    variable.assign_add(0.3 * noise)


@pytest.fixture(scope="session")
def trained():
  """Makes a classifier whose weights and averages are far from initial."""

  def make(variant="femto", classes=3, **options):
    keras.utils.set_random_seed(0)
    model = Classifier(NFNet(variant, classes, skip_gain=0.6, **options))
    model.compile(SGD(0.1))
    model.optimizer.iterations.assign(1)  # before, averages are the weights
    perturb(model.network.weights, 1)
    perturb(model.averages, 2)
    return model

  return make


@pytest.fixture(scope="session")
def model(trained):
  return trained()


@pytest.fixture(scope="session")
def transforms():
  return [preprocessing.SquashCenterCrop(image_size=32, margin=4)]


@pytest.fixture(scope="session")
def names():
  return ["ant", "bee", "cat"]


@pytest.fixture(scope="session")
def images():
  """Noise in several colors, predicted as several classes."""
  r = np.random.default_rng(0)
  noise = r.integers(0, 255, [5, 50, 40, 3])
  return (noise * r.uniform(0, 1, [5, 1, 1, 3])).astype(np.uint8)


@pytest.fixture(scope="session")
def expected(transforms):
  """Returns the logits that the evaluation would see, image by image."""

  def run_network(model, images):
    seed = tf.zeros([2], tf.int64)
    ready = [transforms[0](tf.constant(image), seed) for image in images]
    return model(tf.stack(ready)).numpy()

  return run_network
