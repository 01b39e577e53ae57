import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.nfnet import NFNet, variables_by_stage
from nfnets_tf.optim.adaptive_clipping import clip_unitwise
from nfnets_tf.optim.param_groups import group_of
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.findings import Findings
from nfnets_tf.train.gradients import StepGradient
from nfnets_tf.train.telemetry import Scores, Telemetry

PARTS = ("stem", "stage1", "stage2", "stage3", "stage4", "final_conv")


def step(gradients, perturbed=None, active=None):
  return StepGradient(gradients, None, perturbed, active)


def units(array):
  """Rows of a kernel's units, or the whole of anything else."""
  array = np.asarray(array)
  if sum(size != 1 for size in array.shape) <= 1:
    return array.reshape(1, -1)
  return array.reshape(-1, array.shape[-1]).T


def test_share_of_units_clipped_is_what_the_optimizer_clips():
  """Counted from what clip_unitwise really changed, part by part."""
  network = NFNet("femto", 4)
  variables = network.trainable_variables
  r = np.random.default_rng(0)
  gradients = [
    tf.constant(r.standard_normal(v.shape) * 0.05, tf.float32)
    for v in variables
  ]
  telemetry = Telemetry(network, SGD(0.1, clipping=0.1), None)
  telemetry.update(variables, gradients, step(gradients), None)
  results = {k: float(v) for k, v in telemetry.results().items()}
  parts = {
    id(v): name
    for name, members in variables_by_stage(network).items()
    for v in members
  }
  clipped, total = {}, {}
  for variable, gradient in zip(variables, gradients):
    if group_of(variable).clipped:
      changed = clip_unitwise(gradient, variable, clipping=0.1)
      rows = np.any(units(changed) != units(gradient), axis=1)
      for name in (parts[id(variable)], "all"):
        clipped[name] = clipped.get(name, 0) + rows.sum()
        total[name] = total.get(name, 0) + len(rows)
  assert set(total) == {*PARTS, "classifier", "all"}
  assert 0 < clipped["all"] < total["all"]
  assert results["clipped"] == pytest.approx(clipped["all"] / total["all"])
  for name in (*PARTS, "classifier"):
    expected = clipped[name] / total[name]
    assert results[f"clipped_{name}"] == pytest.approx(expected)
  norm = np.sqrt(sum((g.numpy() ** 2).sum() for g in gradients))
  assert results["gradient_norm"] == pytest.approx(norm, rel=1e-6)
  assert "sam_active" not in results


def test_means_are_over_the_steps_of_an_interval():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  variables = network.trainable_variables
  telemetry = Telemetry(network, SGD(0.1, clipping=0.1), SAM(0.1, every=2))
  big = [tf.fill(v.shape, 10.0) for v in variables]
  zero = [tf.zeros(v.shape) for v in variables]
  ones = tf.ones([2])
  weights = tf.constant([1.0, 0.0, 1.0, 1.0])
  for gradients, on in ((big, 1.0), (zero, 0.0)):
    found = Findings(tf.constant([3.0, 5.0]), ones, ones, on * ones)
    telemetry.update(
      variables, gradients, step(gradients, found, tf.constant(on)), weights
    )
  results = {k: float(v) for k, v in telemetry.results().items()}
  assert set(results) == {
    "gradient_norm",
    "unused",
    "left_out",
    "clipped",
    "perturbed_loss",
    "sam_active",
  }
  assert results["unused"] == 0.25  # one weight of four is 0
  assert results["clipped"] == 0.5 and results["sam_active"] == 0.5
  assert results["gradient_norm"] == pytest.approx(10 * np.sqrt(8) / 2)
  assert results["perturbed_loss"] == 4.0  # of the perturbed step alone


def test_a_step_that_is_left_out_has_no_part_in_the_other_means():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  variables = network.trainable_variables
  telemetry = Telemetry(network, SGD(0.1, clipping=0.1), None)
  for value in (10.0, float("nan")):
    gradients = [tf.fill(v.shape, value) for v in variables]
    finite = tf.math.is_finite(value)
    telemetry.update(variables, gradients, step(gradients), None, finite)
  results = {k: float(v) for k, v in telemetry.results().items()}
  assert results["left_out"] == 0.5 and results["clipped"] == 1.0
  assert results["gradient_norm"] == pytest.approx(10 * np.sqrt(8))


def test_the_perturbed_loss_of_no_perturbed_step_is_no_number():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  telemetry = Telemetry(network, SGD(0.1), SAM(0.1, every=2))
  zeros = [tf.zeros(v.shape) for v in network.trainable_variables]
  found = Findings(*[tf.zeros([2])] * 4)
  telemetry.update(
    network.trainable_variables,
    zeros,
    step(zeros, found, tf.constant(0.0)),
    None,
  )
  assert np.isnan(telemetry.results()["perturbed_loss"])


@pytest.mark.parametrize(
  "optimizer", [SGD(0.1, clipping=None), keras.optimizers.SGD(0.1)]
)
def test_without_clipping_no_share_is_told(optimizer):
  network = NFNet("femto", 4)
  results = Telemetry(network, optimizer, None).results()
  assert set(results) == {"gradient_norm", "unused", "left_out"}


def test_scores_weigh_the_examples():
  scores = Scores()
  found = Findings(
    losses=tf.constant([1.0, 2.0, 9.0]),
    top1=tf.constant([1.0, 0.0, 1.0]),
    top5=tf.constant([1.0, 1.0, 0.0]),
    weights=tf.constant([1.0, 3.0, 0.0]),
  )
  scores.update(found)
  results = {name: float(value) for name, value in scores.results().items()}
  assert results == {"loss": 1.75, "top1": 0.25, "top5": 1.0}
