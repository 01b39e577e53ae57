"""Fixtures of all tests: four logical CPUs, golden parameters, small data."""

import gc
import io
import json
import logging
import os
import pathlib
import re
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Of every process of the tests: as many of them run as there are cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.keras_api import keras
from nfnets_tf.train import inputs
from nfnets_tf.train.distribution import one_device
from nfnets_tf.train.run_dir import RunDir
from tests.support import launcher, tiny
from tests.support.datasets import write_small_dataset

TESTDATA = pathlib.Path(__file__).parent / "testdata"

# Replicas are tested on these; it must happen before TensorFlow starts.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 4,
)


class OwnDeprecations(logging.Handler):
  """Raises where this project's code calls what TensorFlow has deprecated.

  TensorFlow logs that, with the place of the call; warnings are turned into
  errors by pyproject.toml.
  """

  CALL = re.compile(r"From \S*/(nfnets_tf|tests|benchmarks)/\S+: .*deprecated")

  def emit(self, record):
    if self.CALL.match(record.getMessage()):
      raise DeprecationWarning(record.getMessage())


tf.get_logger().addHandler(OwnDeprecations())

# The graphs of the tests are millions of objects; by default all are looked
# through for each quarter more.
gc.set_threshold(700, 10, 300)


@pytest.fixture(scope="session", autouse=True)
def iterate():
  """Keras's own data sets do not wait for tf.data's autotuner; see loading.py.

  Yields:
    The method of TensorFlow that this replaces.
  """
  iterate = tf.data.Dataset.__iter__
  options = tf.data.Options()
  options.autotune.enabled = False
  tf.data.Dataset.__iter__ = lambda data: iterate(data.with_options(options))
  yield iterate
  tf.data.Dataset.__iter__ = iterate


@pytest.fixture(scope="session", autouse=True)
def no_profile():
  """Runs of tiny networks wait for their data; nobody asks where.

  To measure that takes longer than the runs; profiling_test.py does it.
  """
  inputs.profile_stages = lambda *_, **__: {"not measured": 0.0}


@pytest.fixture(autouse=True)
def fresh_globals():
  """No test sees another's precision policy, random state or collectives."""
  keras.utils.set_random_seed(0)
  # Strategies of one process number their collectives alike, and TensorFlow
  # remembers the shapes of a number; on CPUs it then refuses another network.
  tf.distribute.MirroredStrategy._collective_key_base += 10
  yield
  keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
  """Redirects files below the home directory to one for these tests."""
  before = os.environ.get("HOME")
  os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
  yield
  if before is not None:
    os.environ["HOME"] = before


@pytest.fixture(scope="session")
def testdata():
  """Folder of the reference values."""
  return TESTDATA


@pytest.fixture(scope="session")
def golden_parameters():
  """Returns the rule that makes DeepMind-shaped parameters from shapes."""
  return _golden_parameters


def _golden_parameters(shapes):
  """Maps {(module, name): shape} to {module: {name: array}}."""
  parameters = {}
  for (module, name), shape in shapes.items():
    r = np.random.default_rng(zlib.crc32(f"{module}:{name}".encode()))
    if name == "w":
      fan_in = np.float32(np.prod(shape[:-1]))
      array = r.standard_normal(shape, dtype=np.float32) / np.sqrt(fan_in)
    elif name == "gain":
      array = 1 + 0.1 * r.standard_normal(shape, dtype=np.float32)
    elif name == "skip_gain":
      array = np.float32(0.5 + 0.1 * r.standard_normal())
    else:
      array = 0.1 * r.standard_normal(shape, dtype=np.float32)
    parameters.setdefault(module, {})[name] = array
  return parameters


@pytest.fixture(scope="session")
def tiny_network():
  """Returns a function that makes the tiny network, from the same weights."""

  def make(num_classes=4, drop_rate=0.3, stochdepth_rate=0.5):
    keras.utils.set_random_seed(1)
    return tiny.network(num_classes, drop_rate, stochdepth_rate)

  return make


@pytest.fixture
def make_dataset(tmp_path):
  """Writes a dataset of n training and m held-out images of 4 classes."""

  def make(train=50, heldout=13, train_shards=5, name="data"):
    directory = str(tmp_path / name)
    return write_small_dataset(directory, train, heldout, train_shards)

  return make


@pytest.fixture
def random_jpeg():
  """A JPEG of 60x80 pixels of noise."""
  pixels = np.random.default_rng(0).integers(0, 255, [60, 80, 3], np.uint8)
  return io.BytesIO(tf.io.encode_jpeg(pixels, quality=95).numpy()).getvalue()


@pytest.fixture
def sharp_job(make_dataset):
  """A run of 13 steps in intervals of 4, with every kind of draw and SAM."""
  files = [
    "gin/quickstart.gin",
    "tests/support/tiny.gin",
    "gin/overlays/sam.gin",
  ]
  params = [
    f"DATA_DIR = {make_dataset()!r}",
    "run_config.DataConfig.prepare = None",
    "NUM_CLASSES = 4",
    "NUM_EXAMPLES = 50",
    "BATCH_SIZE = 8",
    "EPOCHS = 2.08",
    "run_config.Schedule.checkpoint_every = 8",
    "sam.SAM.every = 3",
  ]
  job = Configuration(files, params).build_job()
  assert job.schedule.total_steps == 13
  return job


@pytest.fixture(scope="session")
def open_trainer():
  """Returns a function that opens a job's trainer in a folder."""

  def make(job, directory, strategy=None):
    return job.open_trainer(RunDir(str(directory)), strategy or one_device())

  return make


@pytest.fixture(scope="session")
def logged():
  """Returns a function that reads a run's records, but for the clock's."""

  def read(directory):
    with open(directory / "metrics.jsonl") as file:
      records = [json.loads(line) for line in file]
    for record in records:
      for timing in ("images_per_second", "input_wait_fraction"):
        record.pop(timing, None)
    return records

  return read


@pytest.fixture(scope="session", name="launcher")
def shared_launcher():
  """A `Launcher` that all tests share: one run at a time."""
  with launcher.launchers() as make:
    yield make()


@pytest.fixture
def launchers():
  """Returns a function that makes a `Launcher`; all end with the test."""
  with launcher.launchers() as make:
    yield make


@pytest.fixture(scope="session")
def tf_configs():
  """Returns a function that makes TF_CONFIG of workers at free ports."""
  return launcher.tf_configs
