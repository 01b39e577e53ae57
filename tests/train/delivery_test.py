"""What a finished run leaves, with real files and a real small classifier."""

import logging
import os
import types

import numpy as np
import pytest

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.errors import RunError
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.delivery import deliver
from nfnets_tf.train.run_dir import RunDir, weights_sha256
from nfnets_tf.train.run_log import MetricsLog, read_records
from nfnets_tf.train.run_state import RunState

RECORD = {"heldout_loss": 0.5, "heldout_top1": 0.75}


class Job:
  """What `deliver` asks of a run; notes what it is called with."""

  num_classes, num_examples, batch_size = 4, 50, 7

  def __init__(self, directory, report):
    self.calls = {}
    self.report = self._report if report else None
    self.train_split, self.heldout_split = (
      pipeline.Split(
        directory=directory,
        split=split,
        num_classes=4,
        operations=[preprocess.Resize(image_size=8)],
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
def made(make_dataset, drawing_network, tmp_path):
  """Makes a run that ends at step 3, the best of which was step 1."""

  def make(averages=True, report=True):
    job = Job(make_dataset(heldout=5), report)
    model = Classifier(drawing_network(), ema_decay=0.9 if averages else None)
    model.compile(SGD(0.1))
    for average in model.averages:
      average.assign(average + 1.0)  # to be told from the weights
    files = RunDir(str(tmp_path / "run"))
    checkpoints = Checkpoints(
      files.checkpoints, model, RunState(seed=0), keep=1
    )
    for step, loss in ((1, 0.25), (3, 0.5)):
      model.optimizer.iterations.assign(step)
      checkpoints.save_if_best(loss)
    checkpoints.save()
    checkpoints.wait()
    log = MetricsLog(files, step=3, end=3)
    heldout = job.heldout_split.index()

    def call():
      deliver(
        files,
        model,
        heldout,
        checkpoints,
        log,
        dict(RECORD),
        variant="femto",
        data=job,
        export=job.export,
        report=job.report,
      )

    return types.SimpleNamespace(
      job=job, files=files, model=model, log=log, heldout=heldout, deliver=call
    )

  return make


@pytest.mark.parametrize("averages", [True, False])
def test_the_result_names_the_weights_and_where_they_are(made, averages):
  run = made(averages)
  run.deliver()
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
def test_reports_on_the_weights_that_it_exports(made, averages):
  run = made(averages)
  raw = weights_sha256(run.model.network.trainable_variables)
  run.deliver()
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
  assert about["configuration"] is None  # no launcher has kept one
  operations = run.job.heldout_split.operations
  assert options == {"class_names": names, "operations": operations}
  assert weights == raw  # the export puts the averages in place itself


def test_without_a_report_it_exports(made):
  run = made(report=False)
  run.deliver()
  assert list(run.job.calls) == ["export"]


def test_a_picture_and_a_sample_of_real_images_lie_beside_it(made):
  run = made()
  run.deliver()
  sample = np.load(run.files.sample)
  assert sample.shape == (5, 8, 8, 3)  # no padding
  # Image i is filled with the value i, in two shards.
  assert sample[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3]
  with open(run.files.curves, "rb") as file:
    assert file.read(4) == b"\x89PNG"


def test_what_was_left_out_is_told(made, caplog):
  run = made()
  split = run.job.heldout_split = pipeline.Split(
    directory=run.job.heldout_split.directory,
    split="heldout",
    num_classes=4,
    operations=run.job.heldout_split.operations,
    max_pixels=15,
  )
  batches = split.evaluation_batches(run.heldout, host_batch=5, replicas=1)
  assert len(list(batches)) == 1
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    run.deliver()
  assert run.job.calls["export"][1]["sample"] is None
  told = "Left out of the 'heldout' split, by cause: 5 image too large."
  assert caplog.messages[-1] == told


def test_what_fails_on_the_way_does_not_mark_the_run_as_done(made):
  run = made()
  os.remove(run.files.metrics)
  os.symlink("/dev/full", run.files.metrics)
  with pytest.raises(RunError, match="metrics.jsonl' cannot be written"):
    run.deliver()
  assert run.files.read_result() is None
