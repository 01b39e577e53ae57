"""A run whose folders are on another file system than the local one.

`ram://` is TensorFlow's own, registered by its scheme as gs:// is: access that
does not go through `tf.io.gfile` fails here.
"""

import json

import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.data import dataset_info
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import checkpoint_steps
from nfnets_tf.jobs.job import RunContext

FILES = ["gin/quickstart.gin", "tests/support/tiny.gin"]


def copy(source, target):
  for folder, _, names in tf.io.gfile.walk(source):
    for name in names:
      path = f"{target}{folder[len(source) :]}/{name}"
      tf.io.gfile.makedirs(path.rsplit("/", 1)[0])
      tf.io.gfile.copy(f"{folder}/{name}", path)


def configuration(data, epochs, seed=0):
  return Configuration(
    FILES,
    [
      f"DATA_DIR = {data!r}",
      "run_config.DataConfig.prepare = None",
      "NUM_CLASSES = 4",
      "NUM_EXAMPLES = 50",
      "BATCH_SIZE = 8",
      f"EPOCHS = {epochs}",
      f"SEED = {seed}",
      "train.TrainJob.export = @export.Exporter()",
      "export.Exporter.fold = False",  # the tiny network is not an NFNet
      "config.Launch.allow_changes = ['EPOCHS']",
    ],
  )


def run(made, workdir):
  made.check_workdir(f"{workdir}/config.gin")
  return made.build_job().run(RunContext(workdir, made.text))


def test_trains_resumes_and_serves_on_another_file_system(
  make_dataset, tmp_path
):
  data, workdir = f"ram://{tmp_path.name}/data", f"ram://{tmp_path.name}/run"
  copy(make_dataset(), data)
  assert dataset_info.INDEX in tf.io.gfile.listdir(data)
  summary = run(configuration(data, 1.3), workdir)  # 8 steps
  assert f"{workdir}/saved_model/1" in summary and "8 steps" in summary
  again = run(configuration(data, 2.6), workdir)  # a longer budget resumes
  assert f"{workdir}/saved_model/2" in again and "16 steps" in again
  with tf.io.gfile.GFile(f"{workdir}/metrics.jsonl") as file:
    steps = [json.loads(line)["step"] for line in file]
  assert steps == sorted(steps) and steps[-1] == 16
  assert checkpoint_steps(f"{workdir}/checkpoints")[-1] == 16
  names = tf.io.gfile.listdir(workdir)
  assert {"config.gin", "config.1.gin", "curves.png", "result.json"} <= {
    name.rstrip("/") for name in names
  }
  served = tf.saved_model.load(f"{workdir}/saved_model/2")
  with tf.io.gfile.GFile(f"{workdir}/heldout_sample.npy", "rb") as file:
    assert file.read(6) == b"\x93NUMPY"
  assert "serving_default" in served.signatures
  assert run(configuration(data, 2.6), workdir) == again
  with pytest.raises(UserError, match="SEED was 0, is 1"):
    run(configuration(data, 2.6, seed=1), workdir)
