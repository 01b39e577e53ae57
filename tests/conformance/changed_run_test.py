"""A run goes on with other replicas, a longer budget and other intervals."""

import dataclasses

import pytest
import tensorflow as tf

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.preemption import Notice


class AtStep(Notice):
  """Is received at a step."""

  def __init__(self, session, step):
    self._session, self._step = session, step

  @property
  def received(self):
    return self._session.checkpoints.step >= self._step


def test_on_other_numbers_of_replicas_the_trajectory_is_the_same(
  sharp_job, open_session, logged, tmp_path
):
  """With dropout, stochastic depth and SAM; saved within an interval."""
  job, many = sharp_job, tmp_path / "many"
  sam = SAM(0.05, scope="global", every=3)
  job.optimization = dataclasses.replace(job.optimization, sam=sam)
  open_session(job, tmp_path / "one").fit(None)
  two = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )
  session = open_session(job, many, two)
  session._notice = AtStep(session, 3)
  with pytest.raises(Preempted):
    session.fit(None)
  open_session(job, many).fit(None)
  pairs = list(zip(logged(tmp_path / "one"), logged(many)))
  assert len(pairs) == 5
  for one, other in pairs:
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_a_longer_budget_and_another_interval_go_on(
  sharp_job, open_session, logged, tmp_path
):
  job = sharp_job

  def run():
    session = open_session(job, tmp_path)
    session.fit(None)
    return session.checkpoints.step

  def intervals(steps, **options):
    job.schedule = dataclasses.replace(
      job.schedule,
      log_every=steps,
      checkpoint_every=steps,
      evaluate_every=steps,
      **options,
    )

  intervals(4)
  run()
  first = logged(tmp_path)
  intervals(6, total_steps=20)
  assert run() == 20
  assert logged(tmp_path)[: len(first)] == first
  after = [r["step"] for r in logged(tmp_path)[len(first) :] if "top1" in r]
  assert after == [18, 20]
  intervals(6, total_steps=14)
  with pytest.raises(UserError, match="at step 20, beyond the 14 steps"):
    open_session(job, tmp_path)
