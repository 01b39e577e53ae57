import dataclasses
import types

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.jobs.export_checkpoint import ExportJob
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import save_deepmind
from nfnets_tf.train.run_dir import RunDir


def use_femto(job):
  """Replaces the tiny network: weights are loaded into an NFNet only."""
  job.model = dataclasses.replace(job.model, network=lambda: NFNet("femto", 4))


@pytest.fixture
def run(sharp_job, open_trainer, tmp_path):
  """A run as if at its third step: (its job, its folder, its classifier)."""
  use_femto(sharp_job)
  trainer = open_trainer(sharp_job, tmp_path / "run")
  classifier = trainer.classifier
  classifier.optimizer.iterations.assign(3)
  for i, variable in enumerate(classifier.network.weights):
    variable.assign(variable + 0.1 * i)
  for i, average in enumerate(classifier.averages):
    average.assign(average - 0.1 * i)
  trainer.checkpoints.save()
  trainer.checkpoints.wait()
  (tmp_path / "run" / "config.gin").write_text("A = 1\n")
  return sharp_job, tmp_path / "run", classifier


def exporter(calls):
  def export(model, directory, **metadata):
    weights = [v.numpy() for v in model.network.weights]
    policy = keras.mixed_precision.global_policy().name
    calls.append(
      types.SimpleNamespace(
        directory=directory, weights=weights, policy=policy, **metadata
      )
    )
    return f"{directory}/1"

  return export


def export(job, checkpoint, calls, **changes):
  options = {"averaged": True, "images": 7, **changes}
  return ExportJob(
    training=job, checkpoint=str(checkpoint), export=exporter(calls), **options
  )


@pytest.mark.parametrize("averaged", [True, False])
def test_exports_the_weights_of_a_checkpoint(run, averaged, tmp_path):
  job, folder, classifier = run
  result = {"step": 3, "heldout_top1": 0.25, "saved_model": None}
  RunDir(str(folder)).write_result(result)
  before = sorted(x for x in folder.rglob("*"))
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  calls = []
  summary = export(job, folder, calls, averaged=averaged).run(
    RunContext(str(tmp_path / "out"), "B = 2")
  )
  (call,) = calls
  variables = classifier.averages if averaged else classifier.network.weights
  for got, expected in zip(call.weights, variables):
    np.testing.assert_array_equal(got, expected)
  assert call.directory == str(tmp_path / "out" / "saved_model")
  assert call.class_names == ["a", "b", "c", "d"]
  assert call.transforms == job.data.heldout_split.transforms
  images, labels = call.sample
  assert len(images) == len(labels) == 7
  assert call.about["configuration"] == "B = 2"
  assert call.about["metrics"] == {"step": 3, "heldout_top1": 0.25}
  assert call.policy == "float32"  # regardless of the training policy
  assert f"{tmp_path}/out/saved_model/1" in summary
  # The run is as it was.
  assert sorted(x for x in folder.rglob("*")) == before


def test_states_no_metrics_of_another_step(run, tmp_path):
  job, folder, _ = run
  RunDir(str(folder)).write_result({"step": 9, "heldout_top1": 0.25})
  for path in (folder, folder / "checkpoints", folder / "checkpoints/ckpt-3"):
    calls = []
    export(job, path, calls).run(RunContext(str(tmp_path / "out"), ""))
    assert calls[0].about["metrics"] == {}  # of step 3 nothing is known


def test_states_nothing_about_the_training_of_other_weights(run, tmp_path):
  job, _, classifier = run
  save_deepmind(classifier, str(tmp_path / "weights.npz"))
  calls, prepared = [], []
  job.data = dataclasses.replace(
    job.data, prepare=lambda: prepared.append(True)
  )
  export(job, tmp_path / "weights.npz", calls).run(
    RunContext(str(tmp_path / "out"), "")
  )
  about = calls[0].about
  assert set(about["data"]) == {"evaluated on", "held-out examples"}
  assert about["metrics"] == {} and prepared == [True]


def test_an_unwritable_directory_is_refused_first(sharp_job, tmp_path):
  sharp_job.model = None  # nothing is built
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file/out"):
    export(sharp_job, tmp_path, []).run(
      RunContext(str(tmp_path / "file" / "out"), "")
    )


def test_the_plan_names_weights_and_images(sharp_job, tmp_path):
  use_femto(sharp_job)
  plan = export(sharp_job, tmp_path, []).plan()
  assert f"weights      {tmp_path}" in plan and "NFNet femto, 4 classes" in plan
  assert "7 images of " in plan


def test_missing_weights_are_refused_first(sharp_job, tmp_path):
  sharp_job.model = None
  with pytest.raises(UserError, match="nowhere' does not exist; expected"):
    export(sharp_job, tmp_path / "nowhere", []).run(
      RunContext(str(tmp_path), "")
    )


def test_no_images_to_compare_on_are_refused(sharp_job, tmp_path):
  with pytest.raises(UserError, match="ExportJob.images = 0 is invalid"):
    export(sharp_job, tmp_path, [], images=0)


def test_no_valid_images_to_compare_on_are_refused(run, tmp_path):
  job, folder, _ = run
  job.data.heldout_split.max_pixels = 1
  with pytest.raises(UserError, match="none of the first 7 images of the 'hel"):
    export(job, folder, []).run(RunContext(str(tmp_path), ""))
