import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.train_step import NonfiniteGuard


@pytest.fixture
def variables():
  return [tf.Variable(tf.zeros([2, 2])), tf.Variable(tf.zeros([3]))]


def reduce(guard, variables, gradient=1.0, losses=(1.0,)):
  return guard.reduce_gradients(
    [tf.fill([2, 2], gradient), tf.zeros([3])],
    [tf.constant([1.0, loss]) for loss in losses],
    variables,
  )


@pytest.mark.parametrize(
  "options",
  [
    dict(losses=[np.nan]),
    dict(losses=[np.inf]),
    dict(gradient=np.nan),
    dict(losses=[1.0, np.nan]),  # of SAM's second pass
  ],
)
def test_nonfinite_losses_and_gradients_are_skipped_and_counted(
  variables, options
):
  guard = NonfiniteGuard(SGD(0.1))
  for count in (1, 2):
    gradients, finite = reduce(guard, variables, **options)
    assert not finite and guard.consecutive_skips.numpy() == count
    assert not all(np.isfinite(g).all() for g in gradients)  # SGD sees it
  gradients, finite = reduce(guard, variables, losses=[1.0, 2.0])
  assert finite and guard.consecutive_skips.numpy() == 0
  np.testing.assert_array_equal(gradients[0], np.ones([2, 2]))


def test_other_optimizers_receive_zero_gradients(variables):
  guard = NonfiniteGuard(keras.optimizers.Adam())
  gradients, _ = reduce(guard, variables, losses=[np.nan])
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))
