"""Training where TensorFlow refuses operations whose results may vary.

A process says so in one of two ways, each of which must give the same bits:
with all that is drawn, and with records that cannot be decoded. launch_test.py
has a shorter run.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.data.pipeline import DataStream
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.keras_api import keras
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from tests.support import tiny
from tests.support.datasets import png_record, write_dataset

# Forked from a server that has imported TensorFlow, but not used it: each
# child can still be told.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
OVERLAYS = ["augmentation", "random_erasing", "repeated_augmentation", "sam"]
WAYS = {
  "environment": lambda: os.environ.update(TF_DETERMINISTIC_OPS="1"),
  "call": lambda: tf.config.experimental.enable_op_determinism(),
}


def build_job(directory):
  """Returns a run of 4 steps with all kinds of draws."""
  files = ["gin/quickstart.gin", "tests/support/tiny.gin"]
  files += [f"gin/overlays/{name}.gin" for name in OVERLAYS]
  params = [
    f"DATA_DIR = {directory!r}",
    "run_config.DataConfig.prepare = None",
    "run_config.DataConfig.max_invalid_fraction = 0.5",
    "NUM_CLASSES = 4",
    "NUM_EXAMPLES = 16",
    "BATCH_SIZE = 8",
    "EPOCHS = 2",
    "MULTIPLICITY = 2",
    "IMAGE_SIZE = 16",
    "randaugment.RandAugment.layers = 1",
    "randaugment.RandAugment.operations = ['rotate', 'equalize', 'cut_out']",
    "augmentation.RandomErasing.probability = 1.0",
  ]
  return Configuration(files, params).build_job()


def write_data(directory):
  """Writes shards of which a record in each split cannot be decoded."""
  records = [png_record(i % 4, i, 16) for i in range(16)]
  records[5] = dataclasses.replace(records[5], encoded=b"\x89PNG\r\n")
  write_dataset(
    directory,
    {"train": records, "heldout": records[:9]},
    num_shards={"train": 2, "heldout": 1},
    class_names=list("abcd"),
  )
  return directory


def fit_with_keras(split):
  """Returns the weights and losses of `fit` on a split's batches."""
  keras.utils.set_random_seed(1)
  model = Classifier(tiny.network(4), ema_decay=0.9)
  model.compile(SGD(0.1))
  stream = DataStream(batch_size=8, shuffle_buffer=8, seed=4)
  batches = split.training_batches(
    split.read_info(), stream=stream, start_step=0, replicas=1
  )
  history = model.fit(batches, steps_per_epoch=2, epochs=2, verbose=0)
  weights = b"".join(np.asarray(w).tobytes() for w in model.get_weights())
  return hashlib.sha256(weights).hexdigest(), history.history["loss"]


def read_records(workdir):
  with open(f"{workdir}/metrics.jsonl") as file:
    return [json.loads(line) for line in file]


def train(way, data, workdir):
  """Returns the records of a run, and the result of a fit on its split."""
  WAYS[way]()
  job = build_job(data)
  job.run(RunContext(workdir, "A = 1\n"))
  records = read_records(workdir)
  for record in records:
    record.pop("images_per_second", None)
  return records, fit_with_keras(job.data.train_split)


def in_new_process(function, *arguments):
  with concurrent.futures.ProcessPoolExecutor(1, PROCESSES) as pool:
    return pool.submit(function, *arguments).result()


@pytest.mark.soak
def test_runs_and_fits_with_all_overlays_give_the_same_bits(tmp_path):
  data = write_data(str(tmp_path / "data"))
  one, other = (
    in_new_process(train, way, data, str(tmp_path / way)) for way in WAYS
  )
  assert len(one[0][-1]["weights_sha256"]) == 64
  assert one == other
