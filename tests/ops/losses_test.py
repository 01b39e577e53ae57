import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.ops.losses import MixedLabels, softmax_cross_entropy

LOGITS = np.random.default_rng(0).normal(size=[6, 5]).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3])


def naive(logits, targets):
  losses = []
  for row, target in zip(logits.astype(np.float64), targets):
    log_p = row - np.log(np.exp(row).sum())
    losses.append(-(target * log_p).sum())
  return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_equals_its_definition_on_dense_targets(smoothing):
  targets = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
  for labels in (LABELS, np.eye(5)[LABELS]):
    loss = softmax_cross_entropy(
      tf.constant(LOGITS), tf.constant(labels), label_smoothing=smoothing
    )
    np.testing.assert_allclose(loss, naive(LOGITS, targets), rtol=1e-5)


def test_accepts_label_distributions():
  mixed = np.random.default_rng(1).dirichlet(np.ones(5), 6)
  loss = softmax_cross_entropy(tf.constant(LOGITS), tf.constant(mixed))
  np.testing.assert_allclose(loss, naive(LOGITS, mixed), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_equal_their_distribution(smoothing):
  fractions = np.array([0.0, 1.0, 0.5, 0.25, 0.9, 0.3], np.float32)
  second_labels = LABELS[::-1].copy()
  targets = fractions[:, None] * np.eye(5)[LABELS]
  targets += (1 - fractions[:, None]) * np.eye(5)[second_labels]
  targets = (1 - smoothing) * targets + smoothing / 5
  labels = MixedLabels(*map(tf.constant, (LABELS, second_labels, fractions)))
  loss = softmax_cross_entropy(
    tf.constant(LOGITS), labels, label_smoothing=smoothing
  )
  np.testing.assert_allclose(loss, naive(LOGITS, targets), rtol=1e-5)
  main = [
    LABELS[i] if fractions[i] >= 0.5 else second_labels[i] for i in range(6)
  ]
  np.testing.assert_array_equal(labels.main(), main)


@pytest.mark.parametrize(
  "labels", [LABELS[:, None], LABELS.astype(np.float32), np.eye(4)[LABELS % 4]]
)
def test_labels_that_would_broadcast_are_refused(labels):
  with pytest.raises(UserError, match=r"labels of shape \("):
    softmax_cross_entropy(tf.constant(LOGITS), tf.constant(labels))


def test_loss_is_float32_of_bfloat16_logits():
  loss = softmax_cross_entropy(
    tf.constant(LOGITS, tf.bfloat16), tf.constant(LABELS)
  )
  assert loss.dtype == tf.float32 and loss.shape == [6]
