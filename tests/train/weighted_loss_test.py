"""The loss that is shown is the one that is minimized, under any weights."""

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
LABELS = np.arange(8) % 4
CLASS_WEIGHT = {0: 1, 1: 10, 2: 0.5, 3: 2}
BY_CLASS = np.array([1, 10, 0.5, 2])[LABELS]
SOME_ZERO = np.array([0, 1, 0, 10, 0.5, 1, 0, 3])
RATE = 0.01


@pytest.fixture
def classifier(tiny_network):
  """Returns a function that makes one without random numbers, run eagerly."""

  def make(**options):
    network = tiny_network(drop_rate=0.0, stochdepth_rate=0.0)
    options = {"label_smoothing": 0.0, "ema_decay": None, **options}
    model = Classifier(network, **options)
    optimizer = SGD(RATE, momentum=0.0, clipping=None, weight_decay=0.0)
    model.compile(optimizer, run_eagerly=True)
    return model

  return make


def losses_of(model):
  """Returns the cross-entropy of each example, in float64."""
  logits = model(IMAGES).numpy().astype(np.float64)
  logits -= logits.max(1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -log_p[np.arange(8), LABELS]


def mean_loss(losses, weights):
  valid = weights != 0
  return (weights * losses)[valid].mean() if valid.any() else 0.0


@pytest.mark.parametrize("weights", [BY_CLASS, SOME_ZERO, np.zeros(8)])
@pytest.mark.parametrize(
  "options",
  [{}, {"micro_batches": 4}, {"sam": SAM(0.0), "micro_batches": 2}],
)
def test_gradient_of_the_shown_loss_is_the_applied_one(
  classifier, weights, options
):
  model = classifier(**options)
  before = model.network.get_weights()
  expected = mean_loss(losses_of(model), weights)
  shown = model.train_on_batch(IMAGES, LABELS, weights, return_dict=True)
  assert shown["loss"] == pytest.approx(expected, rel=1e-5)
  if "sam" in options:
    assert shown["perturbed_loss"] == pytest.approx(expected, rel=1e-5)
  after = model.network.get_weights()
  gradient = [(a - b) / RATE for a, b in zip(before, after)]
  norm = np.sqrt(sum((g**2).sum() for g in gradient))
  assert shown["gradient_norm"] == pytest.approx(norm, rel=1e-3, abs=1e-12)
  if not weights.any():
    assert norm == 0
    return
  ends = []
  for step in (0.02 / norm, -0.02 / norm):
    moved = [w + step * g for w, g in zip(before, gradient)]
    model.network.set_weights(moved)
    ends.append(
      model.test_on_batch(IMAGES, LABELS, weights, reset_metrics=True)[0]
    )
  slope = (ends[0] - ends[1]) / 0.04
  assert slope == pytest.approx(norm, rel=5e-3)


def test_class_and_sample_weights_give_the_numbers_of_keras(classifier):
  """Over an epoch of unequal batches, in training and validation."""
  model = classifier()
  model.optimizer.learning_rate = 0.0
  plain = keras.Sequential([keras.layers.Lambda(model.normalize)])
  plain.add(model.network)
  plain.compile(
    keras.optimizers.SGD(0.0),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=["accuracy"],
    run_eagerly=True,
  )
  sample_weight = np.linspace(0.1, 2, 8)
  histories = [
    some.fit(
      IMAGES,
      LABELS,
      batch_size=5,
      **weights,
      validation_data=(IMAGES, LABELS, sample_weight),
      verbose=0,
    ).history
    # Keras cannot combine the two where a batch is smaller than others.
    for some, weights in (
      (plain, dict(sample_weight=sample_weight * BY_CLASS)),
      (model, dict(sample_weight=sample_weight, class_weight=CLASS_WEIGHT)),
    )
  ]
  for prefix in ("", "val_"):
    for theirs, ours in (("loss", "loss"), ("accuracy", "top1")):
      assert histories[1][prefix + ours] == pytest.approx(
        histories[0][prefix + theirs], rel=1e-5
      )
  by_hand = (sample_weight * BY_CLASS * losses_of(model)).mean()
  assert histories[1]["loss"] == [pytest.approx(by_hand, rel=1e-5)]
  weights = model.fit(IMAGES, LABELS, class_weight=CLASS_WEIGHT, verbose=0)
  by_hand = (BY_CLASS * losses_of(model)).mean()
  assert weights.history["loss"] == [pytest.approx(by_hand, rel=1e-5)]
  data = tf.data.Dataset.from_tensors((IMAGES, LABELS, sample_weight))
  weights = model.fit(data, class_weight=CLASS_WEIGHT, verbose=0)
  assert weights.history["loss"] == pytest.approx(histories[1]["loss"])


def test_a_training_loop_of_ones_own_has_the_same_loss(classifier):
  model = classifier()
  shown = model.test_on_batch(IMAGES, LABELS, SOME_ZERO)[0]
  for weights in (SOME_ZERO, SOME_ZERO[:, None]):
    loss = model.compute_loss(
      y=tf.constant(LABELS[:, None]),
      y_pred=model(IMAGES),
      sample_weight=tf.constant(weights),
    )
    assert float(loss) == pytest.approx(shown, rel=1e-5)


def test_a_loss_that_would_not_be_minimized_is_refused(tiny_network):
  network = keras.Sequential([tiny_network()])
  network.add(keras.layers.Dense(4, kernel_regularizer="l2"))
  with pytest.raises(UserError, match="weight_decay"):
    Classifier(network).compile(SGD(0.1))


def test_an_example_of_weight_0_is_as_if_it_were_absent(classifier):
  models = [classifier(), classifier()]
  keep = SOME_ZERO != 0
  given = [
    (IMAGES, LABELS, SOME_ZERO),
    (IMAGES[keep], LABELS[keep], SOME_ZERO[keep]),
  ]
  logs = [
    model.train_on_batch(*data, return_dict=True)
    for model, data in zip(models, given)
  ]
  for name in ("loss", "top1", "gradient_norm"):
    assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5)
  assert logs[0]["invalid_examples"] == 3 / 8
  for a, b in zip(*(model.network.get_weights() for model in models)):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", [np.int64, np.bool_, "column"])
def test_weights_of_any_form(classifier, form):
  weights = np.array([1, 0, 1, 1, 0, 1, 1, 1])
  expected = mean_loss(losses_of(classifier()), weights)
  given = weights[:, None] if form == "column" else weights.astype(form)
  data = tf.data.Dataset.from_tensors((IMAGES, LABELS, given))
  for source in ((IMAGES, LABELS, given), (data,)):
    model = classifier()
    shown = model.fit(
      source[0],
      *source[1:2],
      sample_weight=source[2] if len(source) > 1 else None,
      verbose=0,
    ).history["loss"]
    assert shown == [pytest.approx(expected, rel=1e-5)]
