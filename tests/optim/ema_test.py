import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops import fusion
from nfnets_tf.optim import ema


def test_decay_is_warmed_up():
  decays = [float(ema.warmed_decay(t, 0.9)) for t in (0, 1, 8, 79, 80, 10**6)]
  expected = [0.1, 2 / 11, 0.5, 80 / 89, 0.9, 0.9]
  np.testing.assert_allclose(decays, expected, rtol=1e-6)


@pytest.mark.parametrize("least", [1 << 16, 0], ids=["kernels", "loop"])
def test_update_follows_the_recurrence(monkeypatch, least):
  monkeypatch.setattr(fusion, "LEAST_LOOP_ELEMENTS", least)
  variable, average = tf.Variable([[1.0, 2.0]]), tf.Variable([[1.0, 2.0]])
  ema.start([average], [variable])
  expected = np.array([[1.0, 2.0]])
  for step, value in enumerate(([[3.0, 0.0]], [[5.0, 1.0]])):
    variable.assign(value)
    decay = min(0.9, (1 + step) / (10 + step))
    ema.update([average], [variable], ema.warmed_decay(step, 0.9))
    expected = decay * expected + (1 - decay) * np.array(value)
  np.testing.assert_allclose(average, expected, rtol=1e-6)


def test_swap_restores_the_same_bits_after_an_error():
  values = np.float32([0.1, 1e-30]), np.float32([1e30, 7.7])
  variable, average = tf.Variable(values[0]), tf.Variable(values[1])
  with pytest.raises(KeyError):
    with ema.exchanged([average], [variable]):
      np.testing.assert_array_equal(variable, values[1])
      np.testing.assert_array_equal(average, values[0])
      raise KeyError
  np.testing.assert_array_equal(variable, values[0])
  np.testing.assert_array_equal(average, values[1])


def test_averages_are_nontrainable_weights_of_the_model():
  model = keras.Model()
  variables = [tf.Variable([[1.0, 2.0]]), tf.Variable([3.0], dtype=tf.float64)]
  averages = ema.add_averages(model, variables)
  assert [a.shape for a in averages] == [[1, 2], [1]]
  assert {a.dtype for a in averages} == {tf.float32}
  assert model.non_trainable_variables == averages
