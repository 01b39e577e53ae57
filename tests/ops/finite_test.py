import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.ops.finite import all_finite


@pytest.mark.parametrize(
  "value, finite",
  [(1.0, True), (3e38, True), (np.nan, False), (np.inf, False)],
)
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_one_element_of_one_tensor_decides(value, finite, dtype):
  tensors = [tf.zeros([3], dtype), tf.cast([0.0, value, 0.0], dtype)]
  assert all_finite(tensors).numpy() == finite
  assert all_finite(tensors[::-1]).numpy() == finite


def test_opposite_infinities_and_sparse_gradients_count():
  assert not all_finite([tf.constant([np.inf, -np.inf])])
  rows = tf.IndexedSlices(tf.constant([[1.0], [np.nan]]), tf.constant([0, 1]))
  assert not all_finite([rows])
