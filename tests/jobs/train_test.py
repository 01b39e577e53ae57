"""Mistakes that end before training, and a whole run in one process."""

import dataclasses
import json
import logging
import os

import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.train import TrainJob
from nfnets_tf.train.run_dir import RunDir, RunLock

SMOKE = ["gin/quickstart.gin", "gin/overlays/smoke.gin"]
TINY = ["gin/quickstart.gin", "tests/support/tiny.gin"]


def job(directory, *params, files=SMOKE) -> TrainJob:
  given = [
    f"DATA_DIR = {str(directory)!r}",
    "run_config.DataConfig.prepare = None",
    "NUM_CLASSES = 4",
    "NUM_EXAMPLES = 50",
    "EPOCHS = 8",
    *params,
  ]
  return Configuration(files, given).build_job()


def run(built, workdir):
  return built.run(RunContext(str(workdir), "A = 1\n"))


def two_replicas():
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def test_refuses_batch_that_does_not_divide(make_dataset, tmp_path):
  built = job(make_dataset(), "BATCH_SIZE = 7")
  built.devices = dataclasses.replace(built.devices, strategy=two_replicas)
  with pytest.raises(UserError, match="7 does not divide among the 2 replicas"):
    run(built, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "param, words",
  [
    ("NUM_EXAMPLES = 51", "has 50 examples, but NUM_EXAMPLES = 51"),
    ("NUM_CLASSES = 3", "has 4 classes, but NUM_CLASSES = 3"),
    ("DATA_DIR = '/nowhere'", "'/nowhere' does not exist"),
    (
      "MULTIPLICITY = 3",
      "batch_size = 32 .* a multiple of 3, for MULTIPLICITY = 3",
    ),
    ("TRAIN_TRANSFORMS = []", "images of shape .* expected a fixed size"),
    (
      "weights.InitWeights.path = '/nowhere'",
      "'/nowhere' does not exist; expec",
    ),
  ],
)
def test_refuses_mismatched_data_and_models(
  make_dataset, tmp_path, param, words
):
  with pytest.raises(UserError, match=words):
    run(job(make_dataset(), param), tmp_path / "run")
  # A refused configuration does not bind the folder.
  assert not (tmp_path / "run" / "config.gin").exists()


@pytest.mark.parametrize(
  "param, words",
  [
    ("VARIANT = 'F9'", "'F9' does not exist"),
    ("VARIANT = ['F0']", r"\['F0'\] does not exist"),
    ("classifier.Classifier.micro_batches = 3", "32 examples per replica do"),
    ("classifier.Classifier.frozen = ['stage9']", "frozen names 'stage9'"),
    ("classifier.Classifier.frozen = 1", "frozen = 1 is invalid"),
    ("nfnet.NFNet.num_classes = 7", "outputs = 7 .* NUM_CLASSES = 4"),
    ("nfnet.NFNet.input_shape = (9, 9, 3)", r"\(9, 9, 3\) .* \(32, 32, 3\)"),
  ],
)
def test_a_model_is_refused_before_shards_are_written(tmp_path, param, words):
  built = job(tmp_path / "shards", param)
  with pytest.raises(UserError, match=words):
    built.plan()
  prepared = []
  built.data = dataclasses.replace(
    built.data, prepare=lambda: prepared.append(True)
  )
  with pytest.raises(UserError, match=words):
    run(built, tmp_path / "run")
  assert not prepared


def test_held_out_images_that_are_trained_on_are_told(
  make_dataset, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  directory, files = make_dataset(), RunDir(str(tmp_path))
  for split, told in (("train", True), ("heldout", False)):
    caplog.clear()
    binding = f"heldout/pipeline.Split.split = '{split}'"
    built = job(directory, binding, files=TINY)
    built.open_trainer(files, tf.distribute.get_strategy())
    assert ("are trained on" in caplog.text) == told


def test_layout_on_a_gpu_is_tensorflows_choice_or_that_of_the_layers(
  make_dataset, tmp_path
):
  directory, files = make_dataset(), RunDir(str(tmp_path))
  for layout, chosen in (("NHWC", False), ("auto", True)):
    binding = f"run_config.DeviceConfig.gpu_layout = '{layout}'"
    built = job(directory, binding, files=TINY)
    built.open_trainer(files, tf.distribute.get_strategy())
    options = tf.config.optimizer.get_experimental_options()
    assert options["layout_optimizer"] == chosen


def test_refuses_locked_work_directory(make_dataset, tmp_path):
  lock = RunLock(str(tmp_path / "run"))
  lock.acquire()  # as another process would
  with pytest.raises(UserError, match=f"by process {os.getpid()} on host"):
    run(job(make_dataset(), files=TINY), tmp_path / "run")
  lock.release()
  assert list((tmp_path / "run").iterdir()) == []


def test_refuses_work_directory_of_another_layout(make_dataset, tmp_path):
  (tmp_path / "data.json").write_text('{"parts": 1}')
  with pytest.raises(UserError, match="has layout 1 .* expected layout 2"):
    run(job(make_dataset(), files=TINY), tmp_path)


def test_run_on_two_replicas_writes_all_files(
  make_dataset, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  caplog.set_level(logging.INFO, "nfnets_tf")
  options = ("BATCH_SIZE = 8", "EPOCHS = 1.5")
  built = job(make_dataset(), *options, files=TINY)
  assert built.schedule.total_steps == 9  # two intervals of 4 and a rest of 1
  built.devices = dataclasses.replace(built.devices, strategy=two_replicas)
  summary = run(built, tmp_path)
  assert "9 steps, finished" in summary
  assert (
    "Training NFNet femto on MirroredStrategy, 2 replicas: 9 steps of 8 images,"
    " 50 images per epoch from 5 shards in"
  ) in caplog.text
  names = {path.name for path in tmp_path.iterdir()}
  assert names >= {
    "checkpoints",
    "config.gin",
    "curves.png",
    "heldout_sample.npy",
    "metrics.jsonl",
    "result.json",
    "tensorboard",
  }
  with open(tmp_path / "metrics.jsonl") as file:
    records = [json.loads(line) for line in file]
  assert [record["step"] for record in records] == [4, 8, 8, 9, 9]
  last = records[-1]
  for name in ("weights_sha256", "ema_weights_sha256"):
    assert len(last[name]) == 64
  assert 0 <= last["heldout_top1"] <= 1 and 0 <= last["ema_heldout_top1"] <= 1
  # Done already; not even the data are looked at.
  again = job("/nowhere", *options, files=TINY)
  assert run(again, tmp_path) == summary


def test_plan_reads_nothing(tmp_path):
  plan = job("/nowhere").plan()
  assert "NFNet femto, 4 classes" in plan
  assert "one_device, float32, 2 steps per call" in plan
  assert "/nowhere/train-*" in plan
