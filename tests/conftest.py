"""What all tests share: four logical CPUs, golden parameters, small data."""

import io
import json
import os
import pathlib
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.config import Configuration
from nfnets_tf.data.records import Record, write_dataset
from nfnets_tf.models import layers
from nfnets_tf.train.session import Session
from nfnets_tf.train.strategy import one_device
from nfnets_tf.train.workdir import Workdir

TESTDATA = pathlib.Path(__file__).parent / "testdata"

# Replicas are tested on these; it must happen before TensorFlow starts.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 4,
)


@pytest.fixture(autouse=True)
def fresh_globals():
  """No test sees another's precision policy or random state."""
  keras.utils.set_random_seed(0)
  yield
  keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
  """What is kept below the home folder is kept for these tests alone."""
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


def png_record(label, position, size=8):
  """A PNG whose pixels tell its position, so that it can be recognised."""
  image = np.full([size, size, 3], position % 251, np.uint8)
  return Record(
    encoded=tf.io.encode_png(image).numpy(),
    label=label,
    text=f"class {label}",
    filename=f"{position}.png",
    format="png",
  )


@pytest.fixture(scope="session")
def drawing_network():
  """Makes a network that compiles at once, with every kind of draw."""

  def make(dropout=0.3, stochastic_depth=0.5, classes=4):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
      [
        keras.Input([32, 32, 3]),
        layers.WSConv2D(8, 3, strides=4),
        layers.ScaledActivation("gelu"),
        # Draws follow from the names.
        layers.StochasticDepth(stochastic_depth, name="depth"),
        layers.SpatialMean(),
        layers.Dropout(dropout, name="dropout"),
        layers.ClassifierHead(classes),
      ]
    )

  return make


@pytest.fixture
def make_dataset(tmp_path):
  """Writes a data set of n training and m held-out images of 4 classes."""

  def make(train=50, heldout=13, train_shards=5, name="data"):
    directory = str(tmp_path / name)
    write_dataset(
      directory,
      {
        "train": [png_record(i % 4, i) for i in range(train)],
        "heldout": [png_record(i % 4, i) for i in range(heldout)],
      },
      num_shards={"train": train_shards, "heldout": 2},
      class_names=["a", "b", "c", "d"],
    )
    return directory

  return make


@pytest.fixture
def random_jpeg():
  """A JPEG of 60x80 pixels of noise."""
  pixels = np.random.default_rng(0).integers(0, 255, [60, 80, 3], np.uint8)
  return io.BytesIO(tf.io.encode_jpeg(pixels, quality=95).numpy()).getvalue()


@pytest.fixture
def sharp_job(make_dataset):
  """A run of 13 steps in intervals of 4, with every kind of draw and SAM."""
  files = ["quickstart.gin", "overlays/smoke.gin", "overlays/sam.gin"]
  params = [
    f"DATA_DIR = {make_dataset()!r}",
    "train.TrainJob.prepare = None",
    "NUM_CLASSES = 4",
    "NUM_EXAMPLES = 50",
    "BATCH_SIZE = 8",
    "EPOCHS = 2.08",
    "train.TrainJob.checkpoint_every = 8",
    "nfnet.NFNet.stochdepth_rate = 0.3",
    "nfnet.NFNet.drop_rate = 0.3",
    "sam.SAM.every = 3",
  ]
  job = Configuration([f"gin/{f}" for f in files], params).build_job()
  assert job.total_steps == 13
  return job


@pytest.fixture(scope="session")
def open_session():
  """Returns a function that opens a job's session in a folder."""

  def make(job, directory, strategy=None):
    indexes = job.train_split.index(), job.heldout_split.index()
    files = Workdir(str(directory))
    return Session(job, files, strategy or one_device(), *indexes, parts=None)

  return make


@pytest.fixture(scope="session")
def logged():
  """Returns a function that reads a run's records, but for the clock's."""

  def read(directory):
    with open(directory / "metrics.jsonl") as file:
      found = [json.loads(line) for line in file]
    for record in found:
      for of_the_clock in ("images_per_second", "waiting_for_data"):
        record.pop(of_the_clock, None)
    return found

  return read
