import functools

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.optim import sam
from nfnets_tf.optim.sam import SAM


def in_replica(function):
  """Runs `function` where a training step runs."""
  strategy = tf.distribute.OneDeviceStrategy("CPU:0")
  return strategy.run(tf.function(function))


def test_perturbs_by_rho_over_one_norm_of_all_weights():
  a, b = tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])
  kept = in_replica(
    lambda: SAM(0.5).perturb([a, b], [tf.constant([3.0, 0.0]), [[4.0]]])
  )
  np.testing.assert_allclose(a, [1.3, 2.0], rtol=1e-6)
  np.testing.assert_allclose(b, [[3.4]], rtol=1e-6)
  np.testing.assert_array_equal(kept[0], [1.0, 2.0])
  np.testing.assert_array_equal(kept[1], [[3.0]])


def test_scale_of_the_gradient_is_irrelevant():
  gradient = tf.random.normal([5])
  moved = []
  for scale in (1.0, 1e-6, 1e6):
    variable = tf.Variable(tf.zeros([5]))
    perturb = functools.partial(
      SAM(0.1).perturb, [variable], [scale * gradient]
    )
    in_replica(perturb)
    moved.append(variable.numpy())
    assert np.linalg.norm(moved[-1]) == pytest.approx(0.1, rel=1e-5)
  np.testing.assert_allclose(moved[0], moved[1], rtol=1e-5)
  np.testing.assert_allclose(moved[0], moved[2], rtol=1e-5)


def test_zero_gradient_perturbs_nothing():
  variable = tf.Variable([1.0, -2.0])
  in_replica(lambda: SAM(0.1).perturb([variable], [tf.zeros([2])]))
  np.testing.assert_array_equal(variable, [1.0, -2.0])


def test_restores_every_bit():
  start = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
  gradient = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
  variable = tf.Variable(start)
  step = np.float32(1e3) * gradient
  assert not np.array_equal((start + step) - step, start)

  def there_and_back():
    kept = SAM(1e3).perturb([variable], [gradient])
    between = variable.read_value()
    sam.restore([variable], kept)
    return between

  between = in_replica(there_and_back)
  assert not np.array_equal(between, start)
  np.testing.assert_array_equal(variable, start)


@pytest.mark.parametrize(
  "fraction, examples, expected",
  [(1.0, 10, 10), (0.2, 10, 2), (0.2, 32, 6), (0.01, 10, 1)],
)
def test_ascent_examples(fraction, examples, expected):
  how = SAM(ascent_fraction=fraction)
  assert how.ascent_examples(examples) == expected
  assert int(how.ascent_examples(tf.constant(examples))) == expected


@pytest.mark.parametrize(
  "options, complaint",
  [
    ({"rho": -0.1}, "SAM.rho = -0.1"),
    ({"rho": float("nan")}, "SAM.rho = nan"),
    (
      {"scope": "batch"},
      "SAM.scope = 'batch' .* expected 'micro_batch', 'rep",
    ),
    ({"ascent_fraction": 0.0}, "SAM.ascent_fraction = 0.0"),
    ({"ascent_fraction": 1.5}, "SAM.ascent_fraction = 1.5"),
    ({"every": 0}, "SAM.every = 0"),
    ({"every": 2.0}, "SAM.every = 2.0"),
  ],
)
def test_invalid_arguments_are_refused(options, complaint):
  with pytest.raises(UserError, match=complaint):
    SAM(**options)


def test_config_round_trip():
  how = SAM(0.1, scope="global", ascent_fraction=0.2, every=3)
  data = keras.saving.serialize_keras_object(how)
  assert vars(keras.saving.deserialize_keras_object(data)) == vars(how)


def test_active_steps_and_passes():
  assert SAM().active_at(tf.constant(3)) is None
  steps = [bool(SAM(every=3).active_at(tf.constant(i))) for i in range(5)]
  assert steps == [True, False, False, True, False]
  assert SAM().passes == 2.0
  assert SAM(ascent_fraction=0.2, every=2).passes == pytest.approx(1.1)
