import collections
import platform

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.layers import NFBlock
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.sparse_kernels import count_zeros, sparse_convolutions
from nfnets_tf.serving.converters import num_bytes
from nfnets_tf.serving.folding import (
  DTYPES,
  TARGETS,
  FoldedNFNet,
  inference_network,
  training_network,
)
from nfnets_tf.serving.signatures import ServingModule

# GELUs of nano that stay by themselves: the first, of 8 channels.
NARROW = 1


def relative(got, expected):
  return np.abs(got - expected).max() / np.abs(expected).max()


def random_images(size, count=2):
  r = np.random.default_rng(0)
  return r.standard_normal([count, size, size, 3], dtype=np.float32)


@pytest.mark.parametrize("variant, size", [("femto", 32), ("nano", 45)])
def test_logits_and_features_equal_the_unfolded_network(trained, variant, size):
  network = trained(variant, classes=7).network
  images = random_images(size)
  features, logits = FoldedNFNet(network)(images)
  pooled = keras.Model(network.input, network.get_layer("pool").output)
  assert relative(logits, network(images)) < 1e-5
  assert relative(features, pooled(images)) < 1e-5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("statistics", ["live", "all"])
def test_zeros_of_a_pruned_network_stay_zeros(trained, statistics, target):
  network = trained(sparse=statistics).network
  for layer in sparse_convolutions(network):
    kernel = layer.kernel.numpy()
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    layer.kernel.assign(kernel)
  images = random_images(32)
  folded = FoldedNFNet(network, target=target)
  _, logits = folded(images)
  assert relative(logits, network(images)) < 1e-5
  zeros = sum(np.sum(p.numpy() == 0) for p in folded.parameters)
  # The only live entry of a filter is its mean.
  alone = sum(
    np.sum(np.count_nonzero(layer.kernel, axis=(0, 1, 2)) == 1)
    for layer in sparse_convolutions(network)
  )
  assert count_zeros(network) > 0.3 * network.count_params()
  assert zeros == count_zeros(network) + alone * (statistics == "live")


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
def test_other_nonlinearities_fold(trained, activation):
  network = trained(activation=activation).network
  images = random_images(32)
  _, logits = FoldedNFNet(network)(images)
  assert relative(logits, network(images)) < 1e-5


def test_both_bottleneck_rules_fold(trained, monkeypatch):
  """Half of 24 is not a multiple of 8: one group of 12, or one of 8."""
  from nfnets_tf.models import variants

  size = variants.Variant((1, 1, 1, 1), 0.0, (24, 48, 48, 48), 8, (8, 8, 8))
  monkeypatch.setitem(variants.VARIANTS, "odd", size)
  images = random_images(32)
  for rule, width in (("released", 8), ("published", 12)):
    network = trained("odd", bottleneck_rule=rule).network
    folded = FoldedNFNet(network)
    assert (3, 3, width, width) in [v.shape for v in folded.parameters]
    _, logits = folded(images)
    assert relative(logits, network(images)) < 1e-5


def test_branch_with_skip_gain_0_is_removed(trained):
  """As in a network at its start, and in short runs at their end."""
  network = trained().network
  whole = num_bytes(FoldedNFNet(network).parameters)
  for layer in network.layers:
    if isinstance(layer, NFBlock):
      layer.skip_gain.assign(0.0)
  folded = FoldedNFNet(network)
  assert num_bytes(folded.parameters) < whole / 2
  images = random_images(32)
  _, logits = folded(images)
  assert relative(logits, network(images)) < 1e-5


def test_folding_does_not_change_training_weights(model):
  before = [v.numpy() for v in model.network.weights]
  FoldedNFNet(model.network)
  for old, new in zip(before, model.network.weights):
    np.testing.assert_array_equal(old, new)


def test_network_without_classifier_is_refused():
  with pytest.raises(UserError, match="no classifier.*include_top=True"):
    FoldedNFNet(NFNet("femto", include_top=False))


def test_folding_ignores_the_training_policy(trained):
  images = random_images(32)
  exact = trained().network(images)
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  network = trained().network
  _, logits = FoldedNFNet(network)(images)
  assert logits.dtype == tf.float32
  assert relative(logits, exact) < 1e-5 < relative(network(images), exact)


@pytest.fixture(scope="module")
def nano(trained):
  return trained("nano").network


@pytest.fixture(scope="module")
def normalized():
  r = np.random.default_rng(0)
  return r.standard_normal([3, 40, 56, 3], dtype=np.float32)


def operations_of(inference):
  spec = tf.TensorSpec([None, None, None, 3], tf.float32)
  traced = tf.function(inference, autograph=False).get_concrete_function(spec)
  return collections.Counter(op.type for op in traced.graph.get_operations())


def test_both_targets_agree(nano, normalized):
  outputs = [FoldedNFNet(nano, target=target)(normalized) for target in TARGETS]
  for first, second in zip(*outputs):
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_both_dtypes_agree_and_return_float32(nano, normalized):
  outputs = [FoldedNFNet(nano, dtype=dtype)(normalized) for dtype in DTYPES]
  for first, second in zip(*outputs):
    assert first.dtype == second.dtype == tf.float32
    difference = np.abs(first - second).max() / np.abs(first).max()
    assert 1e-4 < difference < 0.05


def test_weights_have_the_requested_dtype(nano):
  sizes = set()
  for dtype in DTYPES:
    parameters = FoldedNFNet(nano, dtype=dtype).parameters
    kinds = collections.Counter(v.dtype.name for v in parameters)
    if dtype == "bfloat16":
      assert kinds.pop("float32") == 2  # the classifier's
    assert set(kinds) == {dtype}
    sizes.add(sum(v.shape.num_elements() for v in parameters))
  assert len(sizes) == 1


def test_accelerators_get_convolutions(nano):
  of_cpu, of_others = (
    operations_of(FoldedNFNet(nano, target=target)) for target in TARGETS
  )
  blocks = 5
  gates = 2 * blocks + 1  # and the classifier
  assert of_others["MatMul"] == gates
  assert not of_others["Reshape"] - blocks  # of the gates
  # One for each 1x1 followed by a GELU, one for each other GELU.
  in_all = 3 + 4 * blocks + 1
  assert of_cpu["MatMul"] == gates + in_all - NARROW
  assert of_cpu["Tanh"] == of_others["Tanh"] == in_all


@pytest.fixture
def deprecated_loader(monkeypatch):
  """Lets a test load as TensorFlow Serving does, with a deprecated function."""
  monkeypatch.setattr(tf.get_logger(), "disabled", True)


def fused_gelus(path):
  """Runs a SavedModel as TensorFlow Serving does; counts fused GELUs."""
  v1 = tf.compat.v1
  with v1.Session(graph=tf.Graph()) as session:
    meta = v1.saved_model.load(session, ["serve"], path)
    signature = meta.signature_def["serving_default"]
    metadata = v1.RunMetadata()
    session.run(
      signature.outputs["logits"].name,
      {signature.inputs["images"].name: np.zeros([1, 32, 32, 3])},
      v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE),
      metadata,
    )
  labels = [
    node.timeline_label
    for device in metadata.step_stats.dev_stats
    for node in device.node_stats
  ]
  assert any("MatMul(" in label for label in labels)
  tanhs = sum(" = Tanh(" in label for label in labels)
  # A fused operation is named after its last operation.
  gelus = sum(
    "FusedMatMul(" in x and "Gelu" in x.split(" = ")[0] for x in labels
  )
  return gelus, tanhs


@pytest.mark.usefixtures("deprecated_loader")
def test_server_fuses_every_gelu(nano, names, tmp_path):
  """The CPU speed depends on it, and TensorFlow does not guarantee it."""
  if platform.machine() != "x86_64":
    pytest.skip("the fusion is oneDNN's, which other processors may lack")
  folded = FoldedNFNet(nano)
  service = ServingModule(folded, names, (), folded=folded.parameters)
  path = str(tmp_path / "1")
  tf.saved_model.save(service, path, service.signatures())
  assert fused_gelus(path) == (3 + 4 * 5 + 1 - NARROW, NARROW)


def test_logits_follow_from_the_tracked_variables(trained, images):
  model = trained()
  expected = model(tf.constant(images)).numpy()
  options = {"dtype": "float32", "target": "cpu"}
  for folded, kind in ((True, "folded"), (False, "parameters")):
    network, tracked = inference_network(model, fold=folded, **options)
    assert list(tracked) == [kind]
    variables = tf.nest.flatten(tracked)
    _, logits = network(tf.constant(images, tf.float32))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for variable in variables:
      variable.assign(tf.zeros_like(variable))
    _, logits = network(tf.constant(images, tf.float32))
    np.testing.assert_array_equal(logits, np.zeros_like(logits))


def test_training_network_returns_features(trained, images):
  model = trained()
  features, logits = training_network(model)(tf.constant(images))
  np.testing.assert_allclose(logits, model(images), rtol=1e-5, atol=1e-6)
  head = model.network.get_layer("classifier")
  np.testing.assert_allclose(head(features), logits, rtol=1e-5, atol=1e-6)
  model.network = keras.Sequential(
    [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
  )
  features, logits = training_network(model)(tf.constant(images))
  assert features is None and logits.shape == (5, 3)


def test_network_is_built_for_the_requested_target(trained):
  products = {}
  for target in TARGETS:
    options = {"fold": True, "dtype": "float32", "target": target}
    network, _ = inference_network(trained("nano"), **options)
    products[target] = operations_of(network)["MatMul"]
  assert products["cpu"] > products["accelerator"]
