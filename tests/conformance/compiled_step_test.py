"""The training step compiles with XLA, as a TPU requires."""

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [8, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, 8)
# Operations that call the host, or whose shapes depend on values.
HOST_OPS = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "Print", "PrintV2"}
DYNAMIC_OPS = {"Where", "Unique", "BooleanMask", "NonMaxSuppressionV5"}


def build(network, policy="float32", **options):
  keras.utils.set_random_seed(1)
  keras.mixed_precision.set_global_policy(policy)
  model = Classifier(network(), ema_decay=0.9, **options)
  model.compile(SGD(0.1, clipping=0.05, weight_decay=1e-2))
  return model


def make_step(model, **options):
  @tf.function(**options)
  def step(images, labels):
    return model.train_step((images, labels))

  return step


@pytest.mark.parametrize(
  "options",
  [
    pytest.param({}, marks=pytest.mark.soak),  # as the others, in float32
    {"policy": "mixed_bfloat16"},
    {"sam": SAM(0.1, every=2, ascent_fraction=0.5), "micro_batches": 2},
  ],
)
def test_compiled_step_computes_the_same(tiny_network, options):
  """With dropout, stochastic depth, AGC, averages and the guard."""
  results = []
  for compiled in (False, True):
    model = build(tiny_network, **options)
    step = make_step(model, jit_compile=compiled)
    for _ in range(3):
      logs = step(tf.constant(IMAGES), tf.constant(LABELS))
    assert model.optimizer.iterations.numpy() == 3
    values = [*model.network.trainable_variables, *model.averages]
    results.append(([v.numpy() for v in values], logs))
  tolerance = 1e-2 if "policy" in options else 1e-5
  (plain, logs), (fused, fused_logs) = results
  for a, b in zip(plain, fused):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
  assert logs.keys() == fused_logs.keys()
  np.testing.assert_allclose(logs["loss"], fused_logs["loss"], rtol=tolerance)


def test_nfnet_step_has_static_shapes_and_no_host_calls():
  model = build(
    lambda: NFNet("femto", 4, stochdepth_rate=0.2, drop_rate=0.2),
    sam=SAM(0.1, every=2),
    micro_batches=2,
  )
  step = make_step(model)
  concrete = step.get_concrete_function(
    tf.TensorSpec([8, 32, 32, 3], tf.uint8), tf.TensorSpec([8], tf.int64)
  )
  definition = concrete.graph.as_graph_def()
  nodes = [*definition.node]
  for function in definition.library.function:
    nodes += function.node_def
  kinds = {node.op for node in nodes}
  assert {"While", "StatelessWhile"} & kinds and {"If", "StatelessIf"} & kinds
  assert not kinds & (HOST_OPS | DYNAMIC_OPS)
  unknown = [
    operation.name
    for operation in concrete.graph.get_operations()
    for tensor in operation.outputs
    if tensor.dtype.is_floating
    and not tensor.shape.is_fully_defined()
    # ensure_shape states what TensorFlow does not infer.
    and {user.type for user in tensor.consumers()} != {"EnsureShape"}
  ]
  assert not unknown
