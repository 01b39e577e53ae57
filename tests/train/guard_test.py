import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.findings import Findings
from nfnets_tf.train.gradients import StepGradient
from nfnets_tf.train.guard import Guard, counted


def taken(loss, gradient=1.0, perturbed=None):
  def found(value):
    losses = tf.constant([1.0, value])
    return Findings(losses, losses, losses, tf.ones([2]))

  return StepGradient(
    [tf.fill([2, 2], gradient), tf.zeros([3])],
    found(loss),
    None if perturbed is None else found(perturbed),
    None,
  )


@pytest.mark.parametrize(
  "options",
  [
    dict(loss=np.nan),
    dict(loss=np.inf),
    dict(loss=1.0, gradient=np.nan),
    dict(loss=1.0, perturbed=np.nan),
  ],
)
def test_wherever_it_is_found_the_step_does_not_count(options):
  guard = Guard(SGD(0.1))
  variables = [tf.Variable(tf.zeros([2, 2])), tf.Variable(tf.zeros([3]))]
  for number in (1, 2):
    gradients, finite = guard.summed(taken(**options), variables)
    assert not finite and guard.in_a_row.numpy() == number
    assert not all(np.isfinite(g).all() for g in gradients)  # SGD sees it
  gradients, finite = guard.summed(taken(1.0, perturbed=2.0), variables)
  assert finite and guard.in_a_row.numpy() == 0
  np.testing.assert_array_equal(gradients[0], np.ones([2, 2]))


def test_any_other_optimizer_gets_zeros():
  guard = Guard(keras.optimizers.Adam())
  variables = [tf.Variable(tf.zeros([2, 2])), tf.Variable(tf.zeros([3]))]
  gradients, _ = guard.summed(taken(np.nan), variables)
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_the_findings_of_such_a_step_weigh_nothing():
  of_step = taken(np.nan, perturbed=np.inf)
  for found in counted(of_step, tf.constant(False))[1:3]:
    assert not np.any(found.weights) and not np.any(found.losses)
  kept = counted(taken(2.0), tf.constant(True))
  np.testing.assert_array_equal(kept.clean.losses, [1.0, 2.0])
  assert kept.perturbed is None and np.all(kept.clean.weights == 1)
