"""The operations of a training step, as TensorFlow runs them, are counted.

A timing would be noise; an operation too many, a cast or a change of layout is
seen on every machine. Counts are of the graph after TensorFlow's optimizer.
"""

import collections

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.ops import fusion
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

BLOCKS = 4  # of femto; each has five convolutions and two dense layers
CONVOLUTIONS = 4 + 5 * BLOCKS + 1  # each has a kernel, a gain and a bias
PRODUCTS = 2 * BLOCKS + 1  # each has a kernel and a bias
VARIABLES = 3 * CONVOLUTIONS + 2 * PRODUCTS + BLOCKS  # with the skip gains
ACTIVATIONS = 3 + 4 * BLOCKS + 1


def make_step():
  """Returns a function that runs a step of femto on four images."""
  model = Classifier(NFNet("femto", 10))
  model.compile(SGD(0.1))
  images = np.zeros([4, 64, 64, 3], np.uint8)
  batches = tf.data.Dataset.from_tensors((images, np.zeros([4], np.int32)))
  iterator = iter(batches.repeat())
  step = model.make_train_function()
  return lambda: step(iterator)


def operations_of(function, folder):
  """Returns {kind of operation: number} of the optimized graph of a call."""
  writer = tf.summary.create_file_writer(str(folder))
  tf.summary.trace_on(graph=True)
  function()
  with writer.as_default():
    tf.summary.trace_export("step", step=0)
  writer.close()
  (path,) = folder.iterdir()
  events = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  events = map(tf.compat.v1.Event.FromString, events)
  values = [value for event in events for value in event.summary.value]
  counts = collections.Counter()
  for value in values:
    traced = tf.compat.v1.RunMetadata.FromString(value.tensor.string_val[0])
    for graphs in traced.function_graphs:
      nodes = graphs.post_optimization_graph.node
      counts.update(node.op for node in nodes)
  return counts


@pytest.fixture
def operations(tmp_path, monkeypatch):
  """Counts of a step in bfloat16, which has all that float32 has."""
  if not fusion.fuses():
    pytest.skip("counts are those of a CPU with XLA")
  # Or femto has no kernel that is large enough.
  monkeypatch.setattr(fusion, "LEAST_LOOP_ELEMENTS", 0)
  before = keras.mixed_precision.global_policy()
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  yield operations_of(make_step(), tmp_path)
  keras.mixed_precision.set_global_policy(before)


def test_no_operation_of_a_step_is_wasted(operations):
  def number(kind):
    return sum(n for op, n in operations.items() if op.endswith(kind))

  # Images take no gradient; every other product is there three times.
  assert number("Conv2D") == CONVOLUTIONS
  assert number("Conv2DBackpropFilter") == CONVOLUTIONS
  assert number("Conv2DBackpropInput") == CONVOLUTIONS - 1
  assert number("MatMul") == 3 * PRODUCTS
  assert number("Transpose") == 0
  # Loops: forward and backward for an activation; forward and twice backward
  # for a kernel; one for the update of a kernel, and one for its average.
  loops = 2 * ACTIVATIONS + 3 * CONVOLUTIONS
  kernels = CONVOLUTIONS + PRODUCTS
  assert operations["PartitionedCall"] == loops
  assert operations["StatefulPartitionedCall"] == 2 * kernels
  assert operations["ResourceApplyMomentum"] == VARIABLES - kernels
  # Whether units are clipped, in the whole network and in seven stages; of a
  # bias, a dense kernel and a skip gain forward, and of its gradient; of the
  # mean gradient of a kernel; where pixels are averaged, to float32 and, in
  # squeeze-excite, from it, forward and backward; and of the images, the head's
  # input, the logits and whether the step counts.
  casts = 8 + 2 * (CONVOLUTIONS + 2 * PRODUCTS + BLOCKS) + CONVOLUTIONS
  casts += 2 * (BLOCKS + 1) + 2 * BLOCKS + 11
  assert operations["Cast"] <= casts
  assert sum(operations.values()) <= 42 * VARIABLES
