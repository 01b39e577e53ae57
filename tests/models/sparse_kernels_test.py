import json

import numpy as np
import tensorflow as tf

from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.sparse_kernels import count_zeros, sparse_convolutions
from nfnets_tf.models.weights import save_deepmind


def test_zeros_are_counted_in_a_number_that_json_takes():
  network = NFNet("femto", 4, sparse="live")
  assert json.dumps(count_zeros(network)) == "0"
  for layer in sparse_convolutions(network)[:2]:
    layer.kernel.assign(tf.zeros_like(layer.kernel))
  sizes = [np.size(x.kernel) for x in sparse_convolutions(network)[:2]]
  assert json.dumps(count_zeros(network)) == str(sum(sizes))


def test_pruned_weights_in_a_dense_network_are_told(tmp_path, caplog):
  pruned = NFNet("femto", 4, sparse="live")
  for layer in sparse_convolutions(pruned):
    kernel = layer.kernel.numpy()
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    layer.kernel.assign(kernel)
  path = str(tmp_path / "w.npz")
  save_deepmind(pruned, path)
  images = tf.random.normal([2, 32, 32, 3], seed=1)
  for sparse, told in ((None, True), ("live", False)):
    caplog.clear()
    network = NFNet("femto", 4, sparse=sparse, weights=path)
    assert ("sparse='live'" in caplog.text) == told
    difference = np.abs(network(images) - pruned(images)).max()
    assert (difference > 1e-3) == told
