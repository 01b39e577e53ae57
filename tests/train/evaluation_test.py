import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.evaluation import (
  Evaluation,
  deciding_loss,
  describe_evaluation,
)

EXAMPLES, BATCH, STEPS = 13, 4, 4


@pytest.fixture
def images():
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [EXAMPLES, 32, 32, 3]).astype(np.uint8)
  return images, r.integers(0, 4, [EXAMPLES])


@pytest.fixture
def make(tiny_network, images):
  """Makes (a classifier, its evaluation of the images, what was called)."""

  def make(ema_decay):
    model = Classifier(tiny_network(), ema_decay=ema_decay)
    model.compile(SGD(0.1))
    padding = STEPS * BATCH - EXAMPLES
    weights = np.float32([1] * EXAMPLES + [0] * padding)
    padded = [np.concatenate([x, x[:padding]]) for x in images]
    batches = tf.data.Dataset.from_tensor_slices((*padded, weights))
    batches = batches.batch(BATCH).repeat()  # `steps` of them are the split
    calls = []
    count = keras.callbacks.LambdaCallback(
      on_test_batch_end=lambda batch, logs: calls.append(batch)
    )
    evaluation = Evaluation(model, batches, steps=STEPS, callbacks=[count])
    return model, evaluation, calls

  return make


def by_hand(model, images):
  """The plain cross-entropy, without dropout, and the two accuracies."""
  pictures, labels = images
  logits = model(pictures, training=False).numpy().astype(np.float64)
  shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  loss = -np.log(shares[np.arange(EXAMPLES), labels]).mean()
  return {"loss": loss, "top1": (logits.argmax(axis=1) == labels).mean()}


def test_without_averages_the_weights_are_evaluated_once(make, images):
  model, evaluation, calls = make(ema_decay=None)
  record = evaluation.record()
  for name, value in by_hand(model, images).items():
    assert record[f"heldout_{name}"] == pytest.approx(value, rel=1e-5)
  assert not any(name.startswith("ema_") for name in record)
  assert len(calls) == STEPS
  assert all(isinstance(value, float) for value in record.values())


def test_with_averages_both_are_evaluated_and_nothing_is_changed(make, images):
  model, evaluation, calls = make(ema_decay=0.9)
  model.optimizer.iterations.assign(1)  # or the averages would start anew
  raw = by_hand(model, images)
  variables = model.network.trainable_variables
  before = [variable.numpy() for variable in variables]
  for average in model.averages:
    average.assign(average * 3.0)
  averages = [average.numpy() for average in model.averages]
  record = evaluation.record()
  assert len(calls) == 2 * STEPS
  for got, want in zip([*variables, *model.averages], [*before, *averages]):
    np.testing.assert_array_equal(got, want)
  for variable, average in zip(variables, averages):
    variable.assign(average)
  averaged = by_hand(model, images)
  assert averaged["loss"] != pytest.approx(raw["loss"], rel=1e-2)
  for name in ("loss", "top1"):
    assert record[f"heldout_{name}"] == pytest.approx(raw[name], rel=1e-5)
    assert record[f"ema_heldout_{name}"] == pytest.approx(
      averaged[name], rel=1e-5
    )


@pytest.mark.parametrize(
  "losses, expected",
  [
    ({"heldout_loss": 0.5}, 0.5),
    ({"heldout_loss": 0.5, "ema_heldout_loss": 0.75}, 0.75),
    ({"heldout_loss": math.nan, "ema_heldout_loss": 0.75}, 0.75),
    ({"heldout_loss": 0.5, "ema_heldout_loss": math.nan}, math.inf),
    ({"heldout_loss": math.nan}, math.inf),
    ({"heldout_loss": -math.inf}, math.inf),
  ],
)
def test_checkpoints_are_compared_by_the_weights_that_are_exported(
  losses, expected
):
  assert deciding_loss({**losses, "heldout_top1": 0.1}) == expected


def test_an_evaluation_in_a_line():
  record = {"heldout_loss": 0.12345, "heldout_top1": 0.9876}
  line = "step 1200: held-out loss 0.1235, top-1 98.76%"
  assert describe_evaluation(1200, record) == line
  averaged = {"ema_heldout_loss": 0.1, "ema_heldout_top1": 1.0}
  assert describe_evaluation(1200, {**record, **averaged}) == (
    f"{line}; averaged weights 0.1000, 100.00%"
  )
