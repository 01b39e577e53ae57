import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops import fusion
from nfnets_tf.optim.param_groups import (
  ParamGroup,
  set_group,
  set_lr_multiplier,
)
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.optim.unitwise import clip_unitwise

RATES = [0.5, 0.1, 0.3]
GRADIENTS = [
  np.random.default_rng(i).normal(size=[4, 3]).astype(np.float32)
  for i in range(3)
]
START = np.random.default_rng(9).normal(size=[4, 3]).astype(np.float32)


@pytest.fixture(params=["kernels", "loop"])
def form(request, monkeypatch):
  """The two forms of an update: TensorFlow's kernels, and one loop."""
  least = 0 if request.param == "loop" else 1 << 16
  monkeypatch.setattr(fusion, "LEAST_LOOP_ELEMENTS", least)
  if request.param == "loop" and not fusion.fuses():
    pytest.skip("loops are compiled for a CPU, by XLA")


class Listed(keras.optimizers.schedules.LearningRateSchedule):
  def __call__(self, step):
    return tf.gather(tf.constant(RATES), tf.cast(step, tf.int32))


def run(group, **options):
  variable = set_group(tf.Variable(START), group)
  optimizer = SGD(Listed(), **options)
  for gradient in GRADIENTS:
    optimizer.apply_gradients([(tf.constant(gradient), variable)])
  return variable.numpy()


def naive(*, clipping, decay, nesterov=True, momentum=0.9):
  weight, velocity = START.astype(np.float64), np.zeros([4, 3])
  for rate, gradient in zip(RATES, GRADIENTS):
    g = gradient.astype(np.float64)
    if clipping:
      g = clip_unitwise(
        tf.constant(g), tf.constant(weight), clipping=clipping
      ).numpy()
    g = g + decay * weight
    velocity = momentum * velocity + g
    weight -= rate * (g + momentum * velocity if nesterov else velocity)
  return weight


@pytest.mark.parametrize(
  "group, clipping, decay",
  [
    (ParamGroup.KERNEL, 0.1, 0.05),
    (ParamGroup.HEAD_KERNEL, None, 0.05),
    (ParamGroup.VECTOR, 0.1, 0.0),
  ],
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_with_a_changing_rate_equal_numpy(
  group, clipping, decay, nesterov, form
):
  got = run(group, clipping=0.1, weight_decay=0.05, nesterov=nesterov)
  want = naive(clipping=clipping, decay=decay, nesterov=nesterov)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_update_has_the_bits_of_the_formula():
  """In float32, with the operations in the order that they are documented."""
  kernel, bias = tf.Variable(START), tf.Variable(START[0])
  optimizer = SGD(Listed(), clipping=0.1, weight_decay=0.05)
  weights = [tf.constant(START), tf.constant(START[0])]
  velocities = [tf.zeros_like(weight) for weight in weights]
  for rate, gradient in zip(RATES, GRADIENTS):
    gradients = [tf.constant(gradient), tf.constant(gradient[1])]
    optimizer.apply_gradients(zip(gradients, [kernel, bias]))
    for i, decay in enumerate((0.05, None)):
      g = clip_unitwise(gradients[i], weights[i], clipping=0.1)
      g = g if decay is None else g + decay * weights[i]
      velocities[i] = velocities[i] * 0.9 + g
      weights[i] -= g * rate + velocities[i] * 0.9 * rate
  np.testing.assert_array_equal(kernel, weights[0])
  np.testing.assert_array_equal(bias, weights[1])


def test_decay_is_added_after_clipping():
  # A gradient of zero cannot be clipped, so the decay must act whole.
  variable = set_group(tf.Variable(tf.ones([4, 3])), ParamGroup.KERNEL)
  optimizer = SGD(1.0, weight_decay=0.5, clipping=1e-6, momentum=0.0)
  optimizer.apply_gradients([(tf.zeros([4, 3]), variable)])
  np.testing.assert_allclose(variable, 0.5 * np.ones([4, 3]))


def test_clipping_can_be_turned_off():
  np.testing.assert_allclose(
    run(ParamGroup.KERNEL, clipping=None, weight_decay=0.0),
    naive(clipping=None, decay=0.0),
    rtol=1e-5,
  )


def test_defaults_are_the_papers():
  config = SGD(0.1).get_config()
  paper = {
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 2e-5,
    "clipping": 0.01,
    "clipping_eps": 1e-3,
  }
  assert {name: config[name] for name in paper} == paper


def test_config_survives_serialization():
  optimizer = SGD(0.3, momentum=0.8, clipping=None, weight_decay=1e-3)
  again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
  assert again.get_config() == optimizer.get_config()


def test_trains_a_plain_keras_model():
  model = keras.Sequential([keras.layers.Dense(1, input_shape=(2,))])
  model.compile(SGD(0.1, clipping=1.0), "mse")
  x = np.random.default_rng(0).normal(size=[256, 2])
  history = model.fit(x, x @ [1.0, -2.0], epochs=20, verbose=0).history["loss"]
  assert history[-1] < 0.01 < history[0]


def test_lr_multiplier_scales_every_step():
  slow = set_lr_multiplier(tf.Variable(START), 0.25)
  plain = tf.Variable(START)
  options = {"clipping": None, "weight_decay": 0.0, "momentum": 0.5}
  optimizer = SGD(0.4, **options)
  alone = SGD(0.1, **options)
  for gradient in map(tf.constant, GRADIENTS):
    optimizer.apply_gradients([(gradient, slow)])
    alone.apply_gradients([(gradient, plain)])
  np.testing.assert_allclose(slow, plain, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_nonfinite_step_changes_nothing(value, compiled, nesterov, form):
  variables = [
    set_group(tf.Variable(START), ParamGroup.KERNEL) for _ in range(2)
  ]
  optimizer = SGD(0.5, clipping=0.1, weight_decay=0.1, nesterov=nesterov)
  optimizer.build(variables)

  @tf.function(jit_compile=compiled)
  def step(*gradients):
    optimizer.apply_gradients(zip(gradients, variables))

  def state():
    return [v.numpy().copy() for v in (*variables, *optimizer.momentums)]

  good = tf.constant(GRADIENTS[0])
  step(good, good)
  before = state()
  wrong = GRADIENTS[0].copy()
  wrong[1, 1] = value
  step(good, tf.constant(wrong))  # the other variable's gradient is all right
  for a, b in zip(before, state()):
    np.testing.assert_array_equal(a, b)
  assert optimizer.iterations.numpy() == 2
  step(good, good)
  assert all(np.any(a != b) for a, b in zip(before, state()))


def test_variables_without_a_gradient_stay():
  used, unused = (
    set_group(tf.Variable(START), ParamGroup.KERNEL) for _ in range(2)
  )
  optimizer = SGD(0.5)
  optimizer.build([used, unused])
  optimizer.apply_gradients([(tf.ones([4, 3]), used), (None, unused)])
  np.testing.assert_array_equal(unused, START)
  assert np.any(used != START)
