"""Recomputation changes no gradient, and no compiler undoes it."""

import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.ops.recomputation import recomputed

SIZE = 16


def dense_twice(weights):
  """Returns a function of two matrix products, gated by a constant."""

  def function(inputs, gate):
    return tf.tanh(tf.tanh(inputs @ weights[0]) @ weights[1]) * gate

  return function


@pytest.fixture
def weights():
  return [tf.Variable(tf.random.normal([SIZE, SIZE])) for _ in range(2)]


def gradients(weights, inputs, gate, recompute):
  function = dense_twice(weights)
  with tf.GradientTape() as tape:
    tape.watch(inputs)
    outputs = (
      recomputed(function, inputs, gate)
      if recompute
      else (function(inputs, gate))
    )
    loss = tf.reduce_sum(outputs * tf.sin(outputs))
  return [outputs, *tape.gradient(loss, [inputs, *weights])]


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_the_same(how, dtype):
  weights = [tf.Variable(tf.random.normal([SIZE] * 2)) for _ in range(2)]
  weights = [tf.Variable(tf.cast(weight, dtype)) for weight in weights]
  inputs = tf.cast(tf.random.normal([4, SIZE]), dtype)
  gate = tf.constant([[1.0], [0.0], [1.0], [0.5]], dtype)

  def run(recompute):
    def compute():
      return gradients(weights, inputs, gate, recompute)

    if how == "eager":
      return compute()
    return tf.function(compute, jit_compile=how == "xla")()

  for ours, plain in zip(run(True), run(False)):
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("recompute, products", [(False, 6), (True, 8)])
def test_tensorflow_does_not_merge_both_computations(recompute, products):
  # Each product takes one forward and two backward.
  metadata = tf.compat.v1.RunMetadata()
  options = tf.compat.v1.RunOptions(output_partition_graphs=True)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    weights = [tf.Variable(tf.ones([SIZE, SIZE])) for _ in range(2)]
    inputs = tf.compat.v1.placeholder(tf.float32, [4, SIZE])
    results = gradients(weights, inputs, tf.ones([4, 1]), recompute)
    session.run(tf.compat.v1.global_variables_initializer())
    feed = {inputs: np.ones([4, SIZE])}
    session.run(results, feed, options, metadata)
  graphs = metadata.partition_graphs
  kinds = [node.op for graph in graphs for node in graph.node]
  assert sum("MatMul" in kind for kind in kinds) == products


@pytest.mark.parametrize("recompute, products", [(False, 6), (True, 8)])
def test_xla_does_not_merge_both_computations(weights, recompute, products):
  @tf.function(jit_compile=True)
  def compute(inputs):
    return gradients(weights, inputs, tf.ones([4, 1]), recompute)

  inputs = tf.ones([4, SIZE])
  text = compute.experimental_get_compiler_ir(inputs)(stage="optimized_hlo")
  found = re.findall(r" (?:dot|custom-call)\(", text)
  assert len(found) == products


def test_a_gradient_of_nan_gives_nan(weights):
  inputs, gate = tf.ones([4, SIZE]), tf.fill([4, 1], float("nan"))
  results = gradients(weights, inputs, gate, recompute=True)
  assert all(np.isnan(result).any() for result in results)
