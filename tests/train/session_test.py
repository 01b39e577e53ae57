"""A session stopped anywhere and made again ends in the same bits."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import Preempted
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import InitWeights, save_deepmind
from nfnets_tf.train import session as session_module
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.finish import weights_sha256
from nfnets_tf.train.preemption import EndOnNotice, Notice
from nfnets_tf.train.run_state import RunState


class Killed(Exception):
  pass


@pytest.fixture
def run(open_session):
  def whole(job, directory):
    session = open_session(job, directory)
    session.fit(None)
    record = session.evaluate()
    network = session.classifier.network
    record["sha256"] = weights_sha256(network.variables)
    return record

  return whole


class Asked(Notice):
  """Is received at a step, in training or in the evaluation behind it."""

  def __init__(self, session, step, evaluation):
    self._session, self._at = session, (step, evaluation)
    self._evaluation = False
    evaluate = session._evaluate_at

    def evaluate_at(step):
      self._evaluation = True
      return evaluate(step)

    session._evaluate_at = evaluate_at

  @property
  def received(self):
    step, evaluation = self._at
    return self._session.checkpoints.step >= step and (
      self._evaluation or not evaluation
    )


def test_stopped_in_every_way_it_ends_in_the_same_bits(
  sharp_job, run, open_session, logged, tmp_path, monkeypatch
):
  job = sharp_job
  whole, parted = tmp_path / "whole", tmp_path / "parted"
  expected = run(job, whole)

  def ask(step, *, evaluation=False):
    session = open_session(job, parted)
    session._notice = Asked(session, step, evaluation)
    session._evaluation._callbacks = [EndOnNotice(session._notice, 4, 13)]
    with pytest.raises(Preempted):
      session.fit(None)
    assert session.checkpoints.latest_step == step

  saved = session_module.Checkpoints.save

  def kill(step):
    def save_and_die(self):
      saved(self)
      self.wait()
      if self.step == step:
        raise Killed

    with monkeypatch.context() as patch:
      patch.setattr(session_module.Checkpoints, "save", save_and_die)
      with pytest.raises(Killed):
        run(job, parted)
    assert f"ckpt-{step}.index" in os.listdir(parted / "checkpoints")

  ask(6)  # within an interval
  ask(8)  # behind one, before its evaluation
  ask(8, evaluation=True)  # in that
  kill(13)
  assert run(job, parted) == expected
  assert logged(parted) == logged(whole)


def test_given_weights_are_where_a_run_starts_and_not_where_it_goes_on(
  sharp_job, open_session, tmp_path
):
  job = sharp_job
  given = NFNet("femto", 9)
  save_deepmind(given, str(tmp_path / "given.npz"))
  given_weights = InitWeights(
    path=str(tmp_path / "given.npz"), keep_head=False, averaged=True
  )
  job.model = dataclasses.replace(
    job.model,
    network=lambda: NFNet("femto", 4),  # only an NFNet takes a file
    init_weights=given_weights,
  )
  classifier = open_session(job, tmp_path / "run").classifier
  network = classifier.network
  for got, want in zip(network.variables[:-2], given.variables[:-2]):
    np.testing.assert_array_equal(got, want)
  for average, variable in zip(classifier.averages, network.variables):
    np.testing.assert_array_equal(average, variable)

  for variable in network.variables:
    variable.assign_add(tf.ones_like(variable))
  checkpoints = Checkpoints(
    str(tmp_path / "run" / "checkpoints"),
    classifier,
    RunState(seed=job.seed),
    keep=1,
  )
  checkpoints.save()
  checkpoints.wait()
  os.remove(tmp_path / "given.npz")
  again = open_session(job, tmp_path / "run").classifier.network
  for got, want in zip(again.variables, network.variables):
    np.testing.assert_array_equal(got, want)
