import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet, variables_by_stage
from nfnets_tf.optim.param_groups import group_of
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.optim.unitwise import clip_unitwise, measure_gradients
from nfnets_tf.train.metrics import (
  ExampleMetrics,
  Scores,
  Telemetry,
  compute_example_metrics,
)

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "final_conv")


def test_example_metrics_of_logits():
  ranked = tf.constant([[7.0, 6, 5, 4, 3, 2, 1]] * 3)
  losses = tf.constant([1.0, 2.0, 3.0])
  labels, weights = tf.constant([0, 4, 5]), tf.constant([1, 0, 2])
  metrics = compute_example_metrics(ranked, labels, losses, weights)
  np.testing.assert_array_equal(metrics.losses, losses)
  np.testing.assert_array_equal(metrics.top1, [1, 0, 0])
  np.testing.assert_array_equal(metrics.top5, [1, 1, 0])
  np.testing.assert_array_equal(metrics.weights, [1, 0, 2])
  dense = compute_example_metrics(ranked, tf.one_hot([0, 4, 5], 7), losses)
  np.testing.assert_array_equal(dense.top5, [1, 1, 0])
  np.testing.assert_array_equal(dense.weights, [1, 1, 1])


def test_top5_of_fewer_than_five_classes_is_1():
  metrics = compute_example_metrics(
    tf.zeros([2, 2]), tf.constant([0, 1]), tf.zeros([2])
  )
  np.testing.assert_array_equal(metrics.top5, [1, 1])


def test_packed_metrics_unpack_to_the_same():
  metrics = ExampleMetrics(*tf.unstack(tf.random.normal([4, 3])))
  for a, b in zip(ExampleMetrics.unpack(metrics.pack()), metrics):
    np.testing.assert_array_equal(a, b)


def test_masking_zeroes_nonfinite_metrics():
  losses = tf.constant([1.0, np.nan])
  metrics = ExampleMetrics(losses, losses, losses, tf.ones([2]))
  dropped = metrics.masked(tf.constant(False))
  assert not np.any(dropped.weights) and not np.any(dropped.losses)
  kept = metrics.masked(tf.constant(True))
  np.testing.assert_array_equal(kept.losses, losses)
  np.testing.assert_array_equal(kept.weights, [1, 1])


def test_scores_weigh_the_examples():
  scores = Scores()
  metrics = ExampleMetrics(
    losses=tf.constant([1.0, 2.0, 9.0]),
    top1=tf.constant([1.0, 0.0, 1.0]),
    top5=tf.constant([1.0, 1.0, 0.0]),
    weights=tf.constant([1.0, 3.0, 0.0]),
  )
  scores.update(metrics)
  results = {name: float(value) for name, value in scores.results().items()}
  # (1 * 1 + 3 * 2) / 2 examples; the accuracies are weighted means.
  assert results == {"loss": 3.5, "top1": 0.25, "top5": 1.0}


def rows_of_units(array):
  """Returns [units, elements]: a kernel's units, or one of anything else."""
  array = np.asarray(array)
  if sum(size != 1 for size in array.shape) <= 1:
    return array.reshape(1, -1)
  return array.reshape(-1, array.shape[-1]).T


def test_clipped_is_the_fraction_of_units_that_clipping_changes():
  network = NFNet("femto", 4)
  variables = network.trainable_variables
  r = np.random.default_rng(0)
  gradients = [
    tf.constant(r.standard_normal(v.shape) * 0.05, tf.float32)
    for v in variables
  ]
  stages = variables_by_stage(network)
  optimizer = SGD(0.1, clipping=0.1)
  telemetry = Telemetry(variables, optimizer, stages=stages)
  telemetry.update(measure_gradients(gradients, variables, optimizer, True))
  results = {k: float(v) for k, v in telemetry.results().items()}
  stage_of = {id(v): name for name in stages for v in stages[name]}
  clipped, total = {}, {}
  for variable, gradient in zip(variables, gradients):
    if group_of(variable).clipped:
      changed = clip_unitwise(gradient, variable, clipping=0.1)
      rows = np.any(rows_of_units(changed) != rows_of_units(gradient), axis=1)
      for name in (stage_of[id(variable)], "all"):
        clipped[name] = clipped.get(name, 0) + rows.sum()
        total[name] = total.get(name, 0) + len(rows)
  assert set(total) == {*STAGES, "classifier", "all"}
  assert 0 < clipped["all"] < total["all"]
  assert results["clipped"] == pytest.approx(clipped["all"] / total["all"])
  for name in (*STAGES, "classifier"):
    expected = clipped[name] / total[name]
    assert results[f"clipped_{name}"] == pytest.approx(expected)
  norm = np.sqrt(sum((g.numpy() ** 2).sum() for g in gradients))
  assert results["gradient_norm"] == pytest.approx(norm, rel=1e-6)


@pytest.fixture
def variables():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
  return network.trainable_variables


def norms_of(variables, optimizer, value):
  """Of gradients that are one value; the step counts if it is finite."""
  gradients = [tf.fill(v.shape, value) for v in variables]
  finite = tf.math.is_finite(value)
  return measure_gradients(gradients, variables, optimizer, finite)


def test_telemetry_is_the_mean_over_steps(variables):
  optimizer = SGD(0.1, clipping=0.1)
  telemetry = Telemetry(variables, optimizer, SAM(0.1, every=2))
  ones = tf.ones([2])
  for value, active in ((10.0, 1.0), (0.0, 0.0)):
    telemetry.update(
      norms_of(variables, optimizer, value),
      weights=tf.constant([1.0, 0.0, 1.0, 1.0]),
      perturbed=ExampleMetrics(
        tf.constant([3.0, 5.0]), ones, ones, active * ones
      ),
      sam_active=tf.constant(active),
    )
  results = {k: float(v) for k, v in telemetry.results().items()}
  assert results == {
    "gradient_norm": pytest.approx(10 * np.sqrt(8) / 2),
    "invalid_examples": 0.25,  # one weight of four is 0
    "skipped_steps": 0.0,
    "clipped": 0.5,
    "perturbed_loss": 4.0,  # of the perturbed step alone
    "sam_active": 0.5,
  }


def test_skipped_step_enters_no_other_mean(variables):
  optimizer = SGD(0.1, clipping=0.1)
  telemetry = Telemetry(variables, optimizer)
  for value in (10.0, float("nan")):
    telemetry.update(norms_of(variables, optimizer, value))
  results = {k: float(v) for k, v in telemetry.results().items()}
  assert results["skipped_steps"] == 0.5 and results["clipped"] == 1.0
  assert results["gradient_norm"] == pytest.approx(10 * np.sqrt(8))


def test_perturbed_loss_is_nan_if_no_step_was_perturbed(variables):
  optimizer = SGD(0.1)
  telemetry = Telemetry(variables, optimizer, SAM(0.1, every=2))
  telemetry.update(
    norms_of(variables, optimizer, 0.0),
    perturbed=ExampleMetrics(*[tf.zeros([2])] * 4),
    sam_active=tf.constant(0.0),
  )
  assert np.isnan(telemetry.results()["perturbed_loss"])


@pytest.mark.parametrize(
  "optimizer", [SGD(0.1, clipping=None), keras.optimizers.SGD(0.1)]
)
def test_without_clipping_no_fraction_is_logged(variables, optimizer):
  results = Telemetry(variables, optimizer).results()
  assert set(results) == {"gradient_norm", "invalid_examples", "skipped_steps"}
