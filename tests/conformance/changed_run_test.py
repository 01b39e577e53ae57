"""A run resumes with other replicas, a longer budget and other intervals."""

import dataclasses

import pytest
import tensorflow as tf

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.optim.sam import SAM
from tests.support.preemption import PreemptedAt


def test_number_of_replicas_does_not_change_the_trajectory(
  sharp_job, open_trainer, logged, tmp_path
):
  """With dropout, stochastic depth and SAM; saved within an interval."""
  sam = SAM(0.05, scope="global", every=3)
  sharp_job.optimization = dataclasses.replace(sharp_job.optimization, sam=sam)
  single, resumed = tmp_path / "single", tmp_path / "resumed"
  open_trainer(sharp_job, single).fit(None)
  two_replicas = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )
  trainer = open_trainer(sharp_job, resumed, two_replicas)
  # With two steps a call it cannot stop at 3, but at 6.
  PreemptedAt(trainer, 6)
  with pytest.raises(Preempted):
    trainer.fit(None)
  open_trainer(sharp_job, resumed).fit(None)
  pairs = list(zip(logged(single), logged(resumed)))
  assert len(pairs) == 5
  for expected, record in pairs:
    assert record == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_resumes_with_longer_budget_and_other_intervals(
  sharp_job, open_trainer, logged, tmp_path
):
  def set_intervals(steps, **options):
    sharp_job.schedule = dataclasses.replace(
      sharp_job.schedule,
      log_every=steps,
      checkpoint_every=steps,
      evaluate_every=steps,
      **options,
    )

  set_intervals(4)
  open_trainer(sharp_job, tmp_path).fit(None)
  before = logged(tmp_path)
  set_intervals(6, total_steps=20)
  trainer = open_trainer(sharp_job, tmp_path)
  trainer.fit(None)
  assert trainer.step == 20 and logged(tmp_path)[: len(before)] == before
  steps = [r["step"] for r in logged(tmp_path)[len(before) :] if "top1" in r]
  assert steps == [18, 20]
  set_intervals(6, total_steps=14)
  with pytest.raises(UserError, match="at step 20, beyond the 14 steps"):
    open_trainer(sharp_job, tmp_path)
