"""Micro-batches and SAM's two passes, against twins written out."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.gradients import Share

R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, 8)


@pytest.fixture
def model(drawing_network):
  return Classifier(drawing_network())


def share(model, micro_batches=1, size=8, step=0, weights=None):
  data = [tf.constant(IMAGES[:size]), tf.constant(LABELS[:size])]
  return Share(
    model._evaluate_for_training,
    model.network.trainable_variables,
    data if weights is None else [*data, tf.constant(weights)],
    seed=tf.constant([7, step]),
    replicas=1,
    micro_batches=micro_batches,
  )


def take(model, how=None, active=None, **options):
  """Runs the passes where a training step runs them."""

  @tf.function
  def run():
    if active is None:
      return share(model, **options).taken(how, tf.constant(0))
    return share(model, **options).sharpness_aware(how, active)

  return tf.distribute.OneDeviceStrategy("CPU:0").run(run)


def values(model):
  return [v.numpy() for v in model.network.trainable_variables]


def assert_close(a, b, tolerance=1e-6):
  for x, y in zip(a, b):
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def assert_equal(a, b):
  for x, y in zip(a, b):
    np.testing.assert_array_equal(x, y)


def numpy_gradient(weights, x, y):
  """Softmax cross-entropy of a linear classifier: (gradient, loss)."""
  kernel, bias = weights
  logits = x @ kernel + bias
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  delta = (p - np.eye(3)[y]) / len(y)
  loss = -np.log(p[np.arange(len(y)), y]).mean()
  return [x.T @ delta, delta.sum(0)], loss


@pytest.mark.parametrize("fraction, few", [(1.0, 6), (0.5, 3)])
def test_a_step_is_the_two_passes_worked_out_in_numpy(fraction, few):
  """Foret et al. 2020, equations 2 and 3, then momentum SGD by hand."""
  network = keras.Sequential(
    [keras.Input([2, 1, 3]), keras.layers.Flatten(), keras.layers.Dense(3)]
  )
  model = Classifier(
    network,
    label_smoothing=0.0,
    ema_decay=None,
    mean_rgb=(0, 0, 0),
    stddev_rgb=(1 / 255,) * 3,
    sam=SAM(0.3, ascent_fraction=fraction),
  )
  options = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.1}
  model.compile(SGD(0.5, clipping=None, **options))
  weights = [w.astype(np.float64) for w in network.get_weights()]
  velocity = [np.zeros_like(w) for w in weights]
  for step in range(3):
    r = np.random.default_rng(step)
    x, y = r.standard_normal([6, 6]), r.integers(0, 3, 6)
    logs = model.train_on_batch(
      np.float32(x).reshape(6, 2, 1, 3), y, return_dict=True
    )
    model.reset_metrics()
    ascent, clean = numpy_gradient(weights, x[:few], y[:few])
    norm = np.sqrt(sum((g**2).sum() for g in ascent))
    perturbed = [w + 0.3 * g / norm for w, g in zip(weights, ascent)]
    gradient, loss = numpy_gradient(perturbed, x, y)
    length = np.sqrt(sum((g**2).sum() for g in gradient))
    gradient[0] += 0.1 * weights[0]  # decay acts on the kernel, at w itself
    velocity = [0.9 * v + g for v, g in zip(velocity, gradient)]
    weights = [w - 0.5 * v for w, v in zip(weights, velocity)]
    assert_close(network.get_weights(), weights)
    assert logs["loss"] == pytest.approx(clean, rel=1e-6)
    assert logs["perturbed_loss"] == pytest.approx(loss, rel=1e-6)
    assert logs["gradient_norm"] == pytest.approx(length, rel=1e-6)
    assert logs["sam_active"] == 1.0


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_rho_0_gives_the_plain_step_and_the_same_draws_bit_for_bit(
  drawing_network, policy
):
  keras.mixed_precision.set_global_policy(policy)
  model = Classifier(drawing_network())
  plain = take(model)
  for scope in ("replica", "global"):
    sharp = take(model, SAM(0.0, scope=scope))
    assert_equal(sharp.gradients, plain.gradients)
    # Other draws in the second pass would give other losses.
    assert_equal(sharp.clean, plain.clean)
    assert_equal(sharp.perturbed, plain.clean)
  other = take(model, step=1)
  assert not np.array_equal(other.clean.losses, plain.clean.losses)


def test_a_part_of_the_batch_draws_what_it_draws_in_the_whole(model):
  sharp = take(model, SAM(0.0, ascent_fraction=0.5))
  assert sharp.clean.losses.shape == [4]
  assert_close([sharp.clean.losses], [sharp.perturbed.losses[:4]])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_perturbation_changes_the_gradient_and_no_weight(
  drawing_network, policy
):
  keras.mixed_precision.set_global_policy(policy)
  model = Classifier(drawing_network())
  before, plain = values(model), take(model)
  sharp = take(model, SAM(0.5))
  assert_equal(values(model), before)
  change = [np.abs(a - b).max() for a, b in zip(sharp.gradients, plain[0])]
  assert max(change) > 1e-2
  # The first pass climbs: where it leads to, the loss is higher.
  assert tf.reduce_mean(sharp.perturbed.losses) > tf.reduce_mean(
    sharp.clean.losses
  )
  assert_equal(sharp.clean, plain.clean)


def test_micro_batches_give_the_gradient_of_the_whole_batch(model):
  weights = np.float32([1, 1, 0, 1, 0.5, 1, 1, 2])
  whole = take(model, weights=weights)
  for parts in (2, 8):
    split = take(model, micro_batches=parts, weights=weights)
    assert_close(split.gradients, whole.gradients)
    assert_close(split.clean, whole.clean)


@pytest.mark.parametrize("scope", ["replica", "global"])
def test_micro_batches_share_the_perturbation_of_the_whole_batch(model, scope):
  how = SAM(0.5, scope=scope)
  whole, split = take(model, how), take(model, how, micro_batches=4)
  assert_close(split.gradients, whole.gradients)
  assert_close([*split.clean, *split.perturbed], [*whole[1], *whole[2]])


def test_scope_micro_batch_perturbs_for_each_part_alone(drawing_network):
  """The mean of the parts' SAM gradients, as the SAM paper's section 4.1."""
  network = drawing_network(dropout=0.0, stochastic_depth=0.0)
  model = Classifier(network, ema_decay=None)
  how = SAM(0.5, scope="micro_batch")
  split = take(model, how, micro_batches=2)
  halves = []
  for start in (0, 4):
    part = Share(
      model._evaluate_for_training,
      model.network.trainable_variables,
      [tf.constant(a[start : start + 4]) for a in (IMAGES, LABELS)],
      seed=tf.constant([0, 0]),
      replicas=1,
      micro_batches=1,
    )
    halves.append(part.sharpness_aware(how, None))
  mean = [(a + b) / 2 for a, b in zip(halves[0][0], halves[1][0])]
  assert_close(split.gradients, mean)
  shared = take(model, SAM(0.5), micro_batches=2)
  change = [np.abs(a - b).max() for a, b in zip(shared[0], split[0])]
  assert max(change) > 1e-4


@pytest.mark.parametrize("scope", ["micro_batch", "replica", "global"])
def test_a_step_that_sam_leaves_out_is_plain(model, scope):
  plain = take(model)
  off = take(model, SAM(0.5, scope=scope, every=2), tf.constant(False))
  assert_close(off.gradients, plain.gradients)
  assert_equal([off.perturbed.weights], [np.zeros(8)])
  rows = off.clean.weights.numpy() > 0
  assert_close([off.clean.losses[rows]], [plain.clean.losses])
  on = take(model, SAM(0.5, scope=scope, every=2), tf.constant(True))
  always = take(model, SAM(0.5, scope=scope))
  assert_close(on.gradients, always.gradients)
  assert_close(on.perturbed, always.perturbed)
  rows = on.clean.weights.numpy() > 0
  assert_close([on.clean.losses[rows]], [always.clean.losses])


def take_unknown(model, how, size, micro_batches):
  """As `take`, of a batch whose size is not known beforehand."""

  @tf.function(
    input_signature=[
      tf.TensorSpec([None, 32, 32, 3], tf.uint8),
      tf.TensorSpec([None], tf.int64),
    ]
  )
  def run(images, labels):
    part = Share(
      model._evaluate_for_training,
      model.network.trainable_variables,
      [images, labels],
      seed=tf.constant([7, 0]),
      replicas=1,
      micro_batches=micro_batches,
    )
    return part.plain() if how is None else part.sharpness_aware(how, None)

  strategy = tf.distribute.OneDeviceStrategy("CPU:0")
  return strategy.run(run, args=(IMAGES[:size], LABELS[:size]))


@pytest.mark.parametrize("micro_batches", [2, 4])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 8])
def test_a_batch_of_unknown_size_splits_too(model, size, micro_batches):
  """Also where rounding up leaves fewer parts, or an uneven one."""
  plain = take(model, size=size)
  got = take_unknown(model, None, size, micro_batches)
  assert_close(got.gradients, plain.gradients)
  assert_close(got.clean, plain.clean)
  how = SAM(0.5, ascent_fraction=0.5)
  sharp = take(model, how, size=size)
  got = take_unknown(model, how, size, micro_batches)
  assert_close(got.gradients, sharp.gradients)
  assert_close([*got.clean, *got.perturbed], [*sharp[1], *sharp[2]])


@pytest.mark.parametrize(
  "how", [None, *(SAM(0.5, scope=s) for s in ("micro_batch", "global"))]
)
def test_an_empty_share_gives_nothing(model, how):
  """A replica gets none where the last batch is smaller than their number."""
  for micro_batches in (1, 2):
    got = take_unknown(model, how, 0, micro_batches)
    assert tf.reduce_sum(got.clean.weights) == 0
    assert_equal(got.gradients, [0 * v for v in values(model)])


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_the_ascent_takes_its_share_of_the_batch_not_of_each_part(
  model, micro_batches
):
  how = SAM(0.5, ascent_fraction=0.25)
  whole, split = take(model, how), take(model, how, micro_batches=micro_batches)
  assert split.clean.losses.shape == [2]
  assert_close(split.gradients, whole.gradients)
  assert_close([*split.clean, *split.perturbed], [*whole[1], *whole[2]])


def test_parts_that_do_not_divide_are_refused(model):
  with pytest.raises(UserError, match="8 examples a replica do not .* into 3"):
    share(model, micro_batches=3)
