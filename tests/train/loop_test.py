"""Training, evaluation and resuming, with the tiny network."""

import dataclasses
import functools
import math
import os
import signal
import threading

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import Preempted
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import InitWeights, save_deepmind
from nfnets_tf.optim.pruning import Pruning
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.finish import weights_sha256
from nfnets_tf.train.loop import Preemption
from tests.support.preemption import PreemptedAt


class Killed(Exception):
  pass


def finish(trainer):
  trainer.fit(None)
  record = trainer.evaluate()
  record["sha256"] = weights_sha256(trainer.classifier.network.variables)
  return record


def test_resumes_bit_identically_after_sigterm_and_kill(
  sharp_job, open_trainer, logged, tmp_path, monkeypatch
):
  whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
  expected = finish(open_trainer(sharp_job, whole))

  def preempt(step, query):
    trainer = open_trainer(sharp_job, interrupted)
    PreemptedAt(trainer, step, query)
    with pytest.raises(Preempted):
      trainer.fit(None)
    assert trainer.checkpoints.latest_step == step
    assert f"ckpt-{step}.index" in os.listdir(interrupted / "checkpoints")

  def kill(step):
    trainer = open_trainer(sharp_job, interrupted)
    save = trainer.checkpoints.save

    def save_and_die():
      save()
      trainer.checkpoints.wait()
      if trainer.step == step:
        raise Killed

    monkeypatch.setattr(trainer.checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
      trainer.fit(None)

  preempt(6, query=1)  # within an interval
  preempt(8, query=1)  # after one, before its evaluation
  preempt(8, query=2)  # in that evaluation
  kill(13)
  assert finish(open_trainer(sharp_job, interrupted)) == expected
  assert logged(interrupted) == logged(whole)


def test_run_killed_after_its_last_checkpoint_logs_nothing_twice(
  sharp_job, open_trainer, logged, tmp_path
):
  # The last step is also one of the evaluations that `fit` logs.
  sharp_job.schedule = dataclasses.replace(sharp_job.schedule, total_steps=8)
  open_trainer(sharp_job, tmp_path).fit(None)
  before = logged(tmp_path)
  trainer = open_trainer(sharp_job, tmp_path)
  assert trainer.step == 8
  trainer.fit(None)
  assert logged(tmp_path) == before


def test_shorter_intervals_are_not_retraced(sharp_job, open_trainer, tmp_path):
  traces = []

  class CountingClassifier(Classifier):
    def make_step(self, data):
      traces.append("step")
      super().make_step(data)

    def score_batch(self, data):
      traces.append("evaluation")
      super().score_batch(data)

  sharp_job.model = dataclasses.replace(
    sharp_job.model, classifier=CountingClassifier
  )
  finish(open_trainer(sharp_job, tmp_path))  # intervals of 4, 4, 4 and 1 steps
  assert sorted(traces) == ["evaluation", "step"]


def test_no_perturbed_loss_without_perturbed_steps(
  sharp_job, open_trainer, logged, tmp_path
):
  sharp_job.optimization = dataclasses.replace(
    sharp_job.optimization, sam=SAM(0.05, every=8)
  )
  sharp_job.schedule = dataclasses.replace(sharp_job.schedule, total_steps=8)
  open_trainer(sharp_job, tmp_path).fit(None)
  first, second = logged(tmp_path)
  assert first["sam_active"] == 0.25 and first["perturbed_loss"] > 0
  assert second["sam_active"] == 0 and "perturbed_loss" not in second
  rate = sharp_job.optimization.learning_rate
  assert second["learning_rate"] == float(rate(8)) > 0


def evaluate_by_hand(model, split):
  """Returns the plain cross-entropy, without dropout, and top-1."""
  batches = split.evaluation_batches(
    split.read_info(), host_batch=13, replicas=1
  )
  images, labels, _ = next(iter(batches))
  logits = model(images, training=False).numpy().astype(np.float64)
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  loss = -np.log(probabilities[np.arange(13), labels]).mean()
  return {"loss": loss, "top1": np.mean(logits.argmax(axis=1) == labels)}


def test_evaluates_raw_and_averaged_weights(sharp_job, open_trainer, tmp_path):
  trainer = open_trainer(sharp_job, tmp_path)
  model, split = trainer.classifier, sharp_job.data.heldout_split
  model.optimizer.iterations.assign(1)  # before that, averages are copies
  for average in model.averages:
    average.assign(average * 3.0)
  variables = model.network.trainable_variables
  before = [v.numpy() for v in (*variables, *model.averages)]
  raw = evaluate_by_hand(model, split)
  record = trainer.evaluate()
  for variable, value in zip((*variables, *model.averages), before):
    np.testing.assert_array_equal(variable, value)
  with model.averaged():
    averaged = evaluate_by_hand(model, split)
  assert averaged["loss"] != pytest.approx(raw["loss"], rel=1e-4)
  for name in ("loss", "top1"):
    assert record[f"heldout_{name}"] == pytest.approx(raw[name], rel=1e-5)
    assert record[f"ema_heldout_{name}"] == pytest.approx(
      averaged[name], rel=1e-5
    )
  # The best checkpoint is chosen by the weights that are exported.
  loss = record["ema_heldout_loss"]
  assert trainer.checkpoints.best == {"step": 1, "loss": loss}


def test_nonfinite_evaluation_is_never_best(sharp_job, open_trainer, tmp_path):
  trainer = open_trainer(sharp_job, tmp_path)
  iterations = trainer.classifier.optimizer.iterations
  average = trainer.classifier.averages[0]
  finite = average.numpy()
  for step, factor, loss in ((1, math.nan, math.inf), (2, 1.0, None)):
    iterations.assign(step)
    average.assign(finite * factor)
    record = trainer.evaluate()
    loss = record["ema_heldout_loss"] if loss is None else loss
    assert trainer.checkpoints.best == {"step": step, "loss": loss}


def test_no_network_is_best_before_pruning_ends(
  sharp_job, open_trainer, tmp_path
):
  model, optimization = sharp_job.model, sharp_job.optimization
  job = dataclasses.replace(
    sharp_job,
    model=dataclasses.replace(
      model, network=functools.partial(model.network, sparse="live")
    ),
    optimization=dataclasses.replace(
      optimization, pruning=Pruning(0.5, total_steps=13)
    ),
  )
  trainer = open_trainer(job, tmp_path)
  for step, best in ((9, None), (10, 10)):
    trainer.classifier.optimizer.iterations.assign(step)
    trainer.step = step
    trainer.evaluate()
    assert (trainer.checkpoints.best or {}).get("step") == best


def test_resumes_without_initial_weights(sharp_job, open_trainer, tmp_path):
  path = str(tmp_path / "given.npz")
  given = NFNet("femto", 9)
  save_deepmind(given, path)
  sharp_job.model = dataclasses.replace(
    sharp_job.model,
    network=lambda: NFNet("femto", 4),  # weights are files of an NFNet
    init_weights=InitWeights(path=path, keep_head=False, averaged=True),
  )
  trainer = open_trainer(sharp_job, tmp_path / "run")
  classifier = trainer.classifier
  network = classifier.network
  for got, want in zip(network.variables[:-2], given.variables[:-2]):
    np.testing.assert_array_equal(got, want)
  for average, variable in zip(classifier.averages, network.variables):
    np.testing.assert_array_equal(average, variable)
  for variable in network.variables:
    variable.assign_add(tf.ones_like(variable))
  trainer.checkpoints.save()
  trainer.checkpoints.wait()
  os.remove(path)
  resumed = open_trainer(sharp_job, tmp_path / "run").classifier.network
  for got, want in zip(resumed.variables, network.variables):
    np.testing.assert_array_equal(got, want)


class TwoWorkers:
  """Stands for `Workers` of which the other one received SIGTERM or not."""

  def __init__(self):
    self.other_received, self.answers = False, []

  def any(self, value):
    self.answers.append(value)
    return value or self.other_received


def test_sigterm_is_handled_only_while_listening():
  preemption, other_handler = (
    Preemption(Workers(tf.distribute.get_strategy())),
    [],
  )
  previous = signal.signal(
    signal.SIGTERM, lambda *_: other_handler.append(True)
  )
  try:
    with preemption.listening():
      os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.is_requested() and not other_handler
    os.kill(os.getpid(), signal.SIGTERM)
    assert other_handler == [True]
  finally:
    signal.signal(signal.SIGTERM, previous)


def test_sigterm_of_one_worker_stops_all():
  workers = TwoWorkers()
  preemption = Preemption(workers)
  assert not preemption.is_requested()
  workers.other_received = True
  assert preemption.is_requested()
  with preemption.listening():
    os.kill(os.getpid(), signal.SIGTERM)
  workers.other_received = False
  assert preemption.is_requested()
  assert workers.answers == [False, False, True]


def test_training_in_another_thread_ignores_sigterm():
  done = []

  def work():
    with Preemption(TwoWorkers()).listening():
      done.append(True)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert done == [True]
