"""AGC around other optimizers."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

import nfnets_tf
from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.optim.adaptive_clipping import (
  AGC,
  agc,
)
from nfnets_tf.optim.param_groups import (
  ParamGroup,
  set_group,
  set_lr_multiplier,
)
from nfnets_tf.optim.unitwise import clip_unitwise
from tests.support import tiny


def lamb(*args, **kwargs):
  """Returns the legacy optimizer of tensorflow-addons, or skips the test."""
  addons = pytest.importorskip(
    "tensorflow_addons",
    reason="tensorflow-addons cannot be imported by TensorFlow 2.20",
  )
  return addons.optimizers.LAMB(*args, **kwargs)


OPTIMIZERS = {
  "SGD": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
  "legacy SGD": lambda rate: keras.optimizers.legacy.SGD(rate),
  "Adam": keras.optimizers.Adam,
  "AdamW": keras.optimizers.AdamW,
  "Lion": keras.optimizers.Lion,
  "LAMB": lambda rate: lamb(rate, weight_decay=0.01),
}
R = np.random.default_rng(1)
X = R.normal(size=[32, 4]).astype(np.float32)
Y = 10 * R.normal(size=[32, 3]).astype(np.float32)  # large: all steps clip


def variables():
  """Returns a kernel, a bias and a head's kernel."""
  r = np.random.default_rng(2)
  kernel, bias, head = (
    tf.Variable(r.normal(size=shape).astype(np.float32), name=name)
    for name, shape in (("a/k", (4, 3)), ("a/b", (3,)), ("head/k", (3, 2)))
  )
  return [kernel, bias, set_group(head, ParamGroup.HEAD_KERNEL)]


def gradients(step):
  r = np.random.default_rng(step)
  return [tf.constant(r.normal(size=v.shape), tf.float32) for v in variables()]


def dense(optimizer, **options):
  keras.utils.set_random_seed(0)
  model = keras.Sequential(
    [
      keras.Input([4]),
      keras.layers.Dense(5, activation="tanh", name="hidden"),
      keras.layers.Dense(3, name="last"),
    ]
  )
  model.compile(optimizer, "mse", **options)
  return model


def fit(model, epochs=1):
  options = {"batch_size": 8, "shuffle": False, "verbose": 0}
  return model.fit(X, Y, epochs=epochs, **options).history["loss"]


def assert_equal(ours, theirs, **tolerance):
  for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, **tolerance or {"rtol": 0, "atol": 0})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_inner_optimizer_receives_clipped_gradients(name):
  ours, theirs = variables(), variables()
  wrapped, plain = AGC(OPTIMIZERS[name](0.1), 0.05), OPTIMIZERS[name](0.1)
  for step in range(3):
    clipped = [
      clip_unitwise(g, v, clipping=0.05).numpy()
      for g, v in zip(gradients(step), theirs[:2])
    ]
    clipped.append(gradients(step)[2].numpy())  # the head's kernel is not
    assert np.abs(clipped[0]).max() < np.abs(gradients(step)[0]).max()
    clipped = [tf.constant(g, tf.float32) for g in clipped]
    plain.apply_gradients(zip(clipped, theirs))
    wrapped.apply_gradients(zip(gradients(step), ours))
  assert_equal(ours, theirs, rtol=1e-5, atol=1e-6)
  assert int(wrapped.iterations) == int(plain.iterations) == 3


@pytest.mark.parametrize(
  "exclude, clipped",
  [
    (lambda v: None, [True, True, False]),  # the default
    (lambda v: [], [True, True, True]),
    (lambda v: [v[0]], [False, True, True]),
    (lambda v: [r"^a/", v[2]], [False, False, False]),
    (lambda v: ["b:0$"], [True, False, True]),
    (lambda v: lambda x: x.shape.rank == 1, [True, False, True]),
  ],
)
def test_exclusion_by_variable(exclude, clipped):
  ours = variables()
  optimizer = AGC(keras.optimizers.SGD(1.0), 1e-4, exclude=exclude(ours))
  assert [optimizer.clips(variable) for variable in ours] == clipped
  optimizer.apply_gradients(zip(gradients(0), ours))
  for before, after, gradient, smaller in zip(
    variables(), ours, gradients(0), clipped
  ):
    whole = np.allclose(before - after, gradient, rtol=1e-4)
    assert whole != smaller


def test_none_turns_clipping_off():
  ours, theirs = variables(), variables()
  optimizer = AGC(keras.optimizers.Adam(0.1), clipping=None)
  optimizer.apply_gradients(zip(gradients(0), ours))
  keras.optimizers.Adam(0.1).apply_gradients(zip(gradients(0), theirs))
  assert_equal(ours, theirs)
  assert not any(optimizer.clips(variable) for variable in ours)


def test_variables_without_a_gradient_stay():
  ours = variables()
  optimizer = AGC(keras.optimizers.Adam(0.1))
  optimizer.build(ours)
  optimizer.apply_gradients([(gradients(0)[0], ours[0]), (None, ours[1])])
  np.testing.assert_array_equal(ours[1], variables()[1])
  assert np.any(ours[0] != variables()[0])


@pytest.mark.parametrize(
  "name, replicas, options",
  [
    # The step of plain SGD shows a sum that is made twice; Adam's does not.
    ("SGD", 2, {"steps_per_execution": 2}),
    ("legacy SGD", 2, {}),
    ("LAMB", 2, {}),
    ("AdamW", 1, {"jit_compile": True}),
  ],
)
def test_gradient_is_clipped_after_the_sum_over_replicas(
  name, replicas, options
):
  """With a multiplier, whose update is written by each replica by itself."""

  def trained(optimizer, multiplier=0.5, **options):
    model = dense(optimizer, **options)
    set_lr_multiplier(model.get_layer("hidden").kernel, multiplier)
    return model

  alone = trained(AGC(OPTIMIZERS[name](0.05)))
  fit(alone)
  strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(2)])
  with strategy.scope() if replicas == 2 else contextlib.nullcontext():
    model = trained(AGC(OPTIMIZERS[name](0.05)), **options)
  fit(model)
  assert_equal(model.get_weights(), alone.get_weights(), rtol=0, atol=1e-6)
  if name == "SGD":
    # The tolerance would show missing clipping, or a missing multiplier.
    for other in (
      trained(AGC(OPTIMIZERS[name](0.05), clipping=None)),
      trained(AGC(OPTIMIZERS[name](0.05)), multiplier=1.0),
    ):
      fit(other)
      pairs = zip(other.get_weights(), alone.get_weights())
      assert max(np.abs(a - b).max() for a, b in pairs) > 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras advises .keras
@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
@pytest.mark.parametrize("file", ["m.keras", "m.h5"])
def test_saved_model_continues_identically(name, file, tmp_path):
  schedule = keras.optimizers.schedules.CosineDecay(0.05, 100)
  model = dense(AGC(OPTIMIZERS[name](schedule), 0.02, exclude=["bias"]))
  fit(model)
  model.save(str(tmp_path / file))
  again = keras.models.load_model(str(tmp_path / file))
  assert again.optimizer.get_config() == model.optimizer.get_config()
  assert_equal(again.optimizer.variables, model.optimizer.variables)
  assert len(model.optimizer.variables) == 1 + 2 * 4
  assert fit(again) == fit(model)
  assert_equal(again.get_weights(), model.get_weights())


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_checkpoint_holds_the_inner_state(name, tmp_path):
  model, other = (dense(AGC(OPTIMIZERS[name](0.05))) for _ in range(2))
  fit(model)
  path = tf.train.Checkpoint(model).save(str(tmp_path / "c"))
  fit(other)
  fit(other)
  tf.train.Checkpoint(other).restore(path).assert_existing_objects_matched()
  assert int(other.optimizer.iterations) == 4
  assert fit(other) == fit(model)


@keras.saving.register_keras_serializable(package="adaptive_clipping_test")
def is_vector(variable):
  return variable.shape.rank == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_config_survives_serialization(name):
  ours = variables()
  for exclude in (None, [], ["bias"], [ours[0]], is_vector):
    optimizer = AGC(OPTIMIZERS[name](0.3), 0.1, 1e-2, exclude)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert again.get_config() == optimizer.get_config()
    assert type(again.optimizer) is type(optimizer.optimizer)
    clips = [optimizer.clips(variable) for variable in ours]
    assert [again.clips(variable) for variable in ours] == clips


@pytest.mark.parametrize("name", ["Adam", "LAMB"])
def test_schedule_of_the_inner_optimizer_is_visible(name):
  schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 8, 0.1)
  model = dense(AGC(OPTIMIZERS[name](schedule)))
  assert float(model.optimizer.learning_rate) == pytest.approx(0.5)
  fit(model, epochs=2)
  # Keras' own shows the rate of the last step, a legacy one of the next.
  assert float(model.optimizer.learning_rate) < 0.16
  constant = AGC(OPTIMIZERS[name](0.5))
  constant.learning_rate = 0.25
  assert float(constant.learning_rate) == float(constant.lr) == 0.25


def test_loss_scaling_wraps_it():
  optimizer = keras.mixed_precision.LossScaleOptimizer(
    AGC(keras.optimizers.Adam(0.05)), dynamic=False, initial_scale=1024
  )
  scaled, plain = dense(optimizer), dense(AGC(keras.optimizers.Adam(0.05)))
  np.testing.assert_allclose(fit(scaled), fit(plain), rtol=1e-4)
  assert int(scaled.optimizer.iterations) == 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lr_multiplier_scales_the_rate_of_any_optimizer(name):
  slow, fast = variables()[0], variables()[0]
  set_lr_multiplier(slow, 0.25)
  wrapped, plain = AGC(OPTIMIZERS[name](0.1)), AGC(OPTIMIZERS[name](0.025))
  for step in range(3):
    wrapped.apply_gradients([(gradients(step)[0], slow)])
    plain.apply_gradients([(gradients(step)[0], fast)])
  np.testing.assert_allclose(slow, fast, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_trains_a_classifier(name, tmp_path):
  """Frozen layers, multipliers, counted units, averages, and saving."""
  network = tiny.network()
  network.get_layer("stem").trainable = False
  set_lr_multiplier(network.get_layer("conv").kernel, 0.5)
  model = nfnets_tf.Classifier(network, ema_decay=0.9)
  model.compile(nfnets_tf.AGC(OPTIMIZERS[name](1e-2), clipping=1e-3))
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
  labels = r.integers(0, 4, 8)
  before = network.get_layer("stem").get_weights()
  first = model.train_on_batch(images, labels, return_dict=True)
  for _ in range(5):
    last = model.train_on_batch(
      images, labels, reset_metrics=True, return_dict=True
    )
  assert last["loss"] < first["loss"] and first["clipped"] > 0
  assert_equal(network.get_layer("stem").get_weights(), before)
  model.save(str(tmp_path / "c.keras"))
  again = keras.models.load_model(str(tmp_path / "c.keras"))
  assert_equal(again.optimizer.variables, model.optimizer.variables)


def test_ignored_lr_multipliers_are_refused():
  network = nfnets_tf.NFNet("femto", 4)
  model = nfnets_tf.Classifier(network, layer_decay=0.5, ema_decay=None)
  with pytest.raises(UserError, match=r"^Adam ignores .*layer_decay.*AGC\(Ad"):
    model.compile(keras.optimizers.Adam())
  with pytest.raises(UserError, match=r"received SGD, a legacy .*AGC\(SGD"):
    model.compile(keras.optimizers.legacy.SGD())
  nfnets_tf.Classifier(network).compile(keras.optimizers.Adam())


def test_invalid_arguments_are_refused():
  with pytest.raises(UserError, match="AGC.optimizer = 'adam' is invalid"):
    AGC("adam")
  with pytest.raises(UserError, match="received SGD, which clips already"):
    AGC(nfnets_tf.SGD(0.1))
  with pytest.raises(UserError, match="AGC.clipping = 0 is invalid"):
    AGC(keras.optimizers.Adam(), clipping=0)
  with pytest.raises(UserError, match="AGC.eps = -1 is invalid"):
    AGC(keras.optimizers.Adam(), eps=-1)


def test_factory_for_configurations_passes_its_rate_on():
  optimizer = agc(0.25, optimizer=keras.optimizers.AdamW, clipping=0.1)
  assert float(optimizer.learning_rate) == 0.25
  assert (optimizer.clipping, optimizer.clipping_eps) == (0.1, 1e-3)
