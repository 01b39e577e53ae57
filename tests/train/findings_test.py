import numpy as np
import tensorflow as tf

from nfnets_tf.train.findings import Findings, find, from_table, to_table


def test_findings_of_logits():
  ranked = tf.constant([[7.0, 6, 5, 4, 3, 2, 1]] * 3)
  losses = tf.constant([1.0, 2.0, 3.0])
  found = find(ranked, tf.constant([0, 4, 5]), losses, tf.constant([1, 0, 2]))
  assert isinstance(found, Findings)
  np.testing.assert_array_equal(found.losses, losses)
  np.testing.assert_array_equal(found.top1, [1, 0, 0])
  np.testing.assert_array_equal(found.top5, [1, 1, 0])
  np.testing.assert_array_equal(found.weights, [1, 0, 2])
  dense = find(ranked, tf.one_hot([0, 4, 5], 7), losses)
  np.testing.assert_array_equal(dense.top5, [1, 1, 0])
  np.testing.assert_array_equal(dense.weights, [1, 1, 1])


def test_with_fewer_than_five_classes_every_label_is_among_them():
  found = find(tf.zeros([2, 2]), tf.constant([0, 1]), tf.zeros([2]))
  np.testing.assert_array_equal(found.top5, [1, 1])


def test_a_table_gives_the_findings_back():
  found = Findings(*tf.unstack(tf.random.normal([4, 3])))
  for a, b in zip(from_table(to_table(found)), found):
    np.testing.assert_array_equal(a, b)
