"""Finishing a run, with real files and a real small classifier."""

import argparse
import hashlib
import logging
import os
import pathlib
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.errors import RunError
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.checkpointing import Checkpointer
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.finish import (
  export_metadata,
  finish_run,
  heldout_sample,
  summarize,
  weights_sha256,
)
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_log import MetricsLog, read_records

RECORD = {"heldout_loss": 0.5, "heldout_top1": 0.75}


class Job:
  """Configuration of a run that records the calls of its functions."""

  num_classes, num_examples, batch_size = 4, 50, 7

  def __init__(self, directory, report):
    self.calls = {}
    self.report = self._report if report else None
    self.train_split, self.heldout_split = (
      pipeline.Split(
        directory=directory,
        split=split,
        num_classes=4,
        transforms=[preprocessing.Resize(image_size=8)],
      )
      for split in ("train", "heldout")
    )

  def _report(self, model, split, index, directory, **options):
    assert split is self.heldout_split and index.num_examples == 5
    weights = model.network.trainable_variables
    self.calls["report"] = (directory, options, weights_sha256(weights))

  def export(self, model, directory, **options):
    weights = model.network.trainable_variables
    self.calls["export"] = (directory, options, weights_sha256(weights))
    return f"{directory}/1"


@pytest.fixture
def make_run(make_dataset, tiny_network, tmp_path):
  """Makes a run that ends at step 3, with its best checkpoint at step 1."""

  def make(averages=True, report=True):
    job = Job(make_dataset(heldout=5), report)
    model = Classifier(tiny_network(), ema_decay=0.9 if averages else None)
    model.compile(SGD(0.1))
    for average in model.averages:
      average.assign(average + 1.0)  # to differ from the weights
    files = RunDir(str(tmp_path / "run"))
    checkpoints = Checkpointer(files.checkpoints, model, seed=0, keep=1)
    for step, loss in ((1, 0.25), (3, 0.5)):
      model.optimizer.iterations.assign(step)
      checkpoints.save_if_best(loss)
    checkpoints.save()
    checkpoints.wait()
    heldout = job.heldout_split.read_info()
    trainer = types.SimpleNamespace(
      classifier=model,
      inputs=types.SimpleNamespace(heldout_info=heldout),
      checkpoints=checkpoints,
      log=MetricsLog(files, step=3, end=3),
    )

    def call():
      finish_run(
        trainer,
        files,
        dict(RECORD),
        variant="femto",
        data=job,
        export=job.export,
        report=job.report,
      )

    return types.SimpleNamespace(
      job=job, files=files, model=model, heldout=heldout, finish=call
    )

  return make


@pytest.mark.parametrize("averages", [True, False])
def test_result_has_digests_and_paths(make_run, averages):
  run = make_run(averages)
  run.finish()
  raw = weights_sha256(run.model.network.trainable_variables)
  record = {**RECORD, "weights_sha256": raw}
  if averages:
    record["ema_weights_sha256"] = weights_sha256(run.model.averages)
    assert record["ema_weights_sha256"] != raw
  folder = run.files.root
  assert run.files.read_result() == {
    "variant": "femto",
    "step": 3,
    "heldout_examples": 5,
    "checkpoint": f"{folder}/checkpoints/ckpt-3",
    "best_step": 1,
    "best_checkpoint": f"{folder}/checkpoints/ckpt-1",
    "saved_model": f"{folder}/saved_model/1",
    **record,
  }
  assert read_records(run.files.metrics) == [{"step": 3, **record}]


@pytest.mark.parametrize("averages", [True, False])
def test_reports_and_exports_averaged_weights(make_run, averages):
  run = make_run(averages)
  raw = weights_sha256(run.model.network.trainable_variables)
  run.finish()
  names = ["a", "b", "c", "d"]
  directory, options, weights = run.job.calls["report"]
  assert directory == run.files.report
  assert options == {"class_names": names, "batch_size": 7}
  assert weights == (weights_sha256(run.model.averages) if averages else raw)
  directory, options, weights = run.job.calls["export"]
  assert directory == run.files.saved_models
  images, labels = options.pop("sample")
  assert images.shape == (5, 8, 8, 3) and len(labels) == 5
  about = options.pop("about")
  assert about["metrics"]["heldout_top1"] == 0.75
  assert "weights_sha256" in about["metrics"]
  assert about["configuration"] is None
  transforms = run.job.heldout_split.transforms
  assert options == {"class_names": names, "transforms": transforms}
  assert weights == raw  # the exporter swaps in the averages


def test_exports_without_report(make_run):
  run = make_run(report=False)
  run.finish()
  assert list(run.job.calls) == ["export"]


def test_writes_curves_and_a_sample_of_images(make_run):
  run = make_run()
  run.finish()
  sample = np.load(run.files.sample)
  assert sample.shape == (5, 8, 8, 3)  # no padding
  # Image i is filled with the value i, in two shards.
  assert sample[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3]
  with open(run.files.curves, "rb") as file:
    assert file.read(4) == b"\x89PNG"


def test_logs_skipped_records_by_cause(make_run, caplog):
  run = make_run()
  split = run.job.heldout_split = pipeline.Split(
    directory=run.job.heldout_split.directory,
    split="heldout",
    num_classes=4,
    transforms=run.job.heldout_split.transforms,
    max_pixels=15,
  )
  batches = split.evaluation_batches(run.heldout, host_batch=5, replicas=1)
  assert len(list(batches)) == 1
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    run.finish()
  assert run.job.calls["export"][1]["sample"] is None
  warning = "Skipped records of the 'heldout' split, by cause: 5 image too"
  assert caplog.messages[-1].startswith(warning)


def test_failure_leaves_run_unfinished(make_run):
  run = make_run()
  os.remove(run.files.metrics)
  os.symlink("/dev/full", run.files.metrics)
  with pytest.raises(RunError, match="metrics.jsonl' cannot be written"):
    run.finish()
  assert run.files.read_result() is None


def test_parts_that_fail_cost_neither_export_nor_result(make_run, caplog):
  run = make_run()

  def fail(*arguments, **options):
    raise ValueError("\n$5_$10 bill\n ^ParseException")

  run.job.report = fail
  os.mkdir(run.files.curves)  # cannot be replaced by a file
  os.mkdir(run.files.sample)
  run.finish()
  assert list(run.job.calls) == ["export"]
  result = run.files.read_result()
  assert result["saved_model"] and result["heldout_top1"] == 0.75
  assert list(result["failed"]) == ["report", "curves", "sample"]
  assert result["failed"]["report"] == "ValueError: $5_$10 bill"
  assert len(read_records(run.files.metrics)) == 1
  told = [x for x in caplog.messages if "could not be written" in x]
  assert len(told) == 3 and "$5_$10 bill" in told[0]
  assert "$5_$10 bill" in summarize(
    {**RESULT, "failed": result["failed"]}, run.files
  )


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interruption_in_the_report_is_no_failure_of_it(make_run, error):
  run = make_run()

  def interrupt(*arguments, **options):
    raise error

  run.job.report = interrupt
  with pytest.raises(error):
    run.finish()
  assert run.files.read_result() is None


def test_export_that_fails_leaves_run_unfinished(make_run):
  run = make_run()

  def fail(*arguments, **options):
    raise RunError("no room")

  run.job.export = fail
  with pytest.raises(RunError, match="no room"):
    run.finish()
  assert run.files.read_result() is None and "report" not in run.job.calls


@pytest.mark.parametrize(
  "name", ["a", 'a b\'s "c" $HOME `d` #e *', "-x", "a;b c", "ü\n1"]
)
def test_printed_command_survives_a_shell(tmp_path, monkeypatch, name):
  """Against a program of that name that prints its arguments."""
  tool = tmp_path / "bin" / "saved_model_cli"
  tool.parent.mkdir()
  tool.write_text(
    '#!/bin/sh\npwd -P\nfor x in "$@"; do printf "%s\\0" "$x"; done'
  )
  tool.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
  root = tmp_path / name if name != "-x" else pathlib.Path("-x")
  files = RunDir(str(root))
  (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)
  result = {**RESULT, "saved_model": f"{files.saved_models}/1"}
  text = summarize(result, files)
  command = text[text.index("saved_model_cli") :]
  if ";" in name:
    command = text[text.index("cd '") :]
  shown = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
  folder, _, arguments = shown.stdout.decode().partition("\n")
  if "\n" not in name:
    options = argparse.ArgumentParser()
    for option in ("--dir", "--tag_set", "--signature_def", "--inputs"):
      options.add_argument(option)
    parsed = options.parse_args(arguments.split("\0")[1:-1])
    where = os.path.join(folder, parsed.dir)
    assert os.path.realpath(where) == str(tmp_path / name / "saved_model/1")
    key, _, sample = parsed.inputs.partition("=")
    assert key == "images" and ";" not in sample
    sample = os.path.realpath(os.path.join(folder, sample))
    assert sample == str(tmp_path / name / "heldout_sample.npy")


def test_export_metadata_of_data_and_evaluation(make_dataset):
  run = Job(make_dataset(heldout=13), report=False)
  metadata = export_metadata(
    run, run.heldout_split.read_info(), {"top1": 0.5}, "A = 1"
  )
  directory = run.heldout_split.directory
  assert metadata == {
    "class_names": ["a", "b", "c", "d"],
    "transforms": run.heldout_split.transforms,
    "about": {
      "data": {
        "trained on": f"{directory}, train",
        "evaluated on": f"{directory}, heldout",
        "training examples": "50",
        "held-out examples": "13",
      },
      "metrics": {"top1": 0.5},
      "configuration": "A = 1",
    },
  }


def test_classes_without_names_are_numbered(make_dataset):
  run = Job(make_dataset(heldout=13), report=False)
  unnamed = types.SimpleNamespace(class_names=(), num_examples=13)
  metadata = export_metadata(run, unnamed, {}, None)
  assert metadata["class_names"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("count", [5, 65, 99])
def test_sample_has_first_images_and_labels(make_dataset, count):
  """Also across batches, of which one holds 64 images."""
  split = Job(make_dataset(heldout=70), report=False).heldout_split
  images, labels = heldout_sample(split, split.read_info(), count)
  in_order = [*range(0, 70, 2), *range(1, 70, 2)]  # two shards in turn
  assert images[:, 0, 0, 0].tolist() == in_order[:count]
  assert labels.tolist() == [i % 4 for i in in_order[:count]]
  assert images.dtype == np.uint8


RESULT = {
  "variant": "nano",
  "step": 1234,
  "heldout_examples": 360,
  "checkpoint": "runs/x/checkpoints/ckpt-1234",
  "best_checkpoint": "runs/x/checkpoints/ckpt-900",
  "saved_model": "runs/x/saved_model/1",
  "heldout_top1": 0.975,
  "heldout_top5": 0.99,
  "weights_sha256": "ab" * 32,
}


def test_summary_shows_accuracies_and_paths():
  averaged = {
    "ema_heldout_top1": 0.9875,
    "ema_heldout_top5": 0.9975,
    "ema_weights_sha256": "cd" * 32,
  }
  text = summarize({**RESULT, **averaged}, RunDir("runs/x"))
  for part in (
    "1,234 steps, finished",
    "97.50% raw, 98.75% averaged weights, of 360 images",
    "99.00% raw, 99.75% averaged weights, of 360 images",
    "ab" * 32,
    "cd" * 32,
    "checkpoint      runs/x/checkpoints/ckpt-1234",
    "best            runs/x/checkpoints/ckpt-900",
    "runs/x/tensorboard",
    "runs/x/metrics.jsonl",
    "runs/x/config.gin",
    "runs/x/curves.png",
    "saved_model_cli run --dir runs/x/saved_model/1 ",
  ):
    assert part in text


def test_summary_without_averages():
  assert "averaged" not in summarize(RESULT, RunDir("runs/x"))


def test_summary_shows_an_existing_report(tmp_path):
  files = RunDir(str(tmp_path))
  assert "report" not in summarize(RESULT, files).replace(str(tmp_path), "")
  (tmp_path / "report").mkdir()
  assert files.report in summarize(RESULT, files)


def test_digest_of_bytes_in_variable_order():
  a, b = np.float32([1, 2]), np.float32([[3]])
  digest = weights_sha256([tf.Variable(a), tf.Variable(b)])
  assert digest == hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()
  assert digest != weights_sha256([tf.Variable(b), tf.Variable(a)])
