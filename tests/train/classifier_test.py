import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import assign_parameters, parameter_table
from nfnets_tf.ops.losses import MixedLabels, softmax_cross_entropy
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier


class ListedRates(keras.optimizers.schedules.LearningRateSchedule):
  def __init__(self, rates):
    self.rates = rates

  def __call__(self, step):
    return tf.gather(
      tf.constant(self.rates, tf.float32), tf.cast(step, tf.int32)
    )


@pytest.fixture
def compiled(tiny_network):
  """Returns a function that makes a compiled classifier of 4 classes."""

  def make(rate=0.1, **options):
    model = Classifier(tiny_network(), **options)
    model.compile(SGD(rate))
    return model

  return make


def batch(size=8):
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [size, 32, 32, 3]).astype(np.uint8)
  return images, r.integers(0, 4, size)


@pytest.mark.parametrize(
  "eager",
  [
    True,  # tracing F0 takes 20 s
    pytest.param(False, marks=pytest.mark.soak),
  ],
)
def test_five_steps_of_f0_equal_deepminds(testdata, golden_parameters, eager):
  """Losses, weights and averages after AGC, Nesterov, decay and EMA."""
  golden = np.load(testdata / "f0_agc_sgd_5steps.npz")
  network = NFNet("F0", 10, drop_rate=0.0)
  table = parameter_table(network)
  start = golden_parameters({key: tuple(v.shape) for key, v in table.items()})
  assign_parameters(network, start)
  # The golden images are normalized already.
  model = Classifier(network, mean_rgb=(0, 0, 0), stddev_rgb=(1 / 255,) * 3)
  model.compile(SGD(ListedRates(golden["lrs"])), run_eagerly=eager)
  for step in range(5):
    r = np.random.default_rng(100 + step)
    x = r.standard_normal((4, 48, 48, 3), dtype=np.float32)
    y = r.integers(0, 10, (4,))
    logs = model.train_on_batch(x, y, reset_metrics=True, return_dict=True)
    norm = golden["grad_norms"][step]
    assert logs["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert logs["loss"] == pytest.approx(golden["losses"][step], rel=1e-4)
  _compare_with_golden_norms(
    model, table, start, json.loads(str(golden["norms"]))
  )
  x = np.random.default_rng(7).standard_normal((2, 48, 48, 3), np.float32)
  np.testing.assert_allclose(network(x), golden["final_logits"], rtol=1e-4)


def _compare_with_golden_norms(model, table, start, norms):
  averages = {
    id(variable): average
    for variable, average in zip(
      model.network.trainable_variables, model.averages
    )
  }
  assert len(norms) == len(table)
  for (module, name), variable in table.items():
    change, average_change, total = norms[f"{module}:{name}"]
    value, average = variable.numpy(), averages[id(variable)].numpy()
    initial = start[module][name]
    # A difference of float32 arrays is known to their own rounding.
    rounding = 1e-7 * np.linalg.norm(initial)
    for got, want in (
      (np.linalg.norm(value - initial), change),
      (np.linalg.norm(average - initial), average_change),
    ):
      assert got == pytest.approx(want, rel=1e-4, abs=rounding), (module, name)
    scale = np.abs(value).sum()
    assert value.sum() == pytest.approx(total, abs=1e-4 * scale)


def test_label_in_a_shard_reaches_the_loss_unchanged(make_dataset, compiled):
  """Shard -> parse -> batch -> train_step: the loss of exactly that label."""
  split = pipeline.Split(
    # 6 of 4 classes: were all equally frequent, smoothing would not show.
    directory=make_dataset(train=6, train_shards=1),
    split="train",
    num_classes=4,
    transforms=[preprocessing.Resize(image_size=32)],
  )
  batches = split.training_batches(
    split.read_info(),
    stream=pipeline.DataStream(batch_size=6, shuffle_buffer=6, seed=0),
    start_step=0,
    replicas=1,
  )
  model = compiled(label_smoothing=0.1)
  # Logits that differ between classes and do not depend on the image.
  head = model.network.get_layer("classifier")
  head.kernel.assign(tf.zeros_like(head.kernel))
  bias = np.array([0.3, -1.0, 2.0, 0.1])
  head.bias.assign(bias)
  log_p = bias - np.log(np.exp(bias).sum())
  ((images, labels, _),) = batches.take(1)
  # The true label of an image stands in its pixels: value i, label i % 4.
  truth = images.numpy()[:, 0, 0, 0] % 4
  targets = 0.9 * np.eye(4)[truth] + 0.1 / 4
  logs = model.train_on_batch(images, labels, return_dict=True)
  assert logs["loss"] == pytest.approx(-(targets * log_p).sum(1).mean(), 1e-6)
  assert logs["top1"] == pytest.approx((truth == 2).mean())
  assert len(set(truth)) == 4


def test_evaluation_is_the_plain_weighted_loss(compiled):
  model = compiled(label_smoothing=0.3)
  images, labels = batch()
  weights = np.float32([1, 1, 0, 1, 0, 1, 1, 0])
  losses = softmax_cross_entropy(model(images), tf.constant(labels)).numpy()
  result = model.evaluate(
    tf.data.Dataset.from_tensors((images, labels, weights)),
    verbose=0,
    return_dict=True,
  )
  assert result["loss"] == pytest.approx(losses[weights > 0].mean(), rel=1e-5)
  hits = np.argmax(model(images), -1) == labels
  assert result["top1"] == pytest.approx(hits[weights > 0].mean())


def test_examples_of_weight_0_train_nothing(compiled):
  model = compiled()
  before = model.network.get_weights()
  images, labels = batch()
  model.optimizer.coupled_decay = 0.0
  model.train_on_batch(images, labels, sample_weight=np.zeros(8))
  for old, new in zip(before, model.network.get_weights()):
    np.testing.assert_array_equal(old, new)


def test_one_hot_labels_train_as_integers(compiled):
  images, labels = batch()
  losses = []
  for given in (labels, np.eye(4, dtype=np.float32)[labels]):
    keras.utils.set_random_seed(0)
    model = compiled()
    model.train_on_batch(images, given)
    losses.append(model.test_on_batch(images, given))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_mixed_labels_train_as_distributions(compiled):
  images, labels = batch()
  share = np.linspace(0, 1, 8, dtype=np.float32)
  second = (labels + 1) % 4
  dense = share[:, None] * np.eye(4, dtype=np.float32)[labels]
  dense += (1 - share[:, None]) * np.eye(4, dtype=np.float32)[second]
  mixed = MixedLabels(labels.astype(np.int32), second.astype(np.int32), share)
  results = []
  for given in (mixed, dense):
    keras.utils.set_random_seed(0)
    model = compiled(micro_batches=2, sam=SAM(0.1, ascent_fraction=0.5))
    data = tf.data.Dataset.from_tensor_slices((images, given)).batch(8)
    history = model.fit(data, epochs=2, verbose=0).history
    results.append((history["loss"], history["top1"], model.get_weights()))
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
  assert results[0][1] == results[1][1]
  for a, b in zip(results[0][2], results[1][2]):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_averages_start_at_the_weights_at_compile(tiny_network):
  model = Classifier(tiny_network())
  loaded = [v + 1.0 for v in model.network.get_weights()]
  model.network.set_weights(loaded)
  model.compile(SGD(0.1))
  for average, value in zip(model.averages, loaded):
    np.testing.assert_array_equal(average, value)


def test_averaged_evaluates_averages_and_restores_weights(
  compiled, tiny_network
):
  model = compiled(rate=1.0)
  images, labels = batch()
  for _ in range(3):
    model.train_on_batch(images, labels)
  weights = model.network.get_weights()
  averages = [v.numpy() for v in model.averages]
  with model.averaged():
    inside = model(images).numpy()
  reference = tiny_network()
  reference.set_weights(averages)
  np.testing.assert_array_equal(inside, reference(model.normalize(images)))
  assert np.abs(inside - model(images)).max() > 1e-6
  for old, new in zip(weights, model.network.get_weights()):
    np.testing.assert_array_equal(old, new)


def test_averaged_without_averages_is_refused(compiled):
  model = compiled(ema_decay=None)
  assert model.averages == []
  with pytest.raises(UserError, match="ema_decay is None"):
    with model.averaged():
      raise AssertionError("must not be reached")


@pytest.mark.parametrize("name", ["loss", "metrics"])
def test_compile_refuses_loss_and_metrics(tiny_network, name):
  model = Classifier(tiny_network())
  with pytest.raises(UserError, match=f"received {name}"):
    model.compile(SGD(0.1), **{name: ["mse"]})


def test_random_numbers_follow_from_seed_and_step(tiny_network):
  def losses(seed):
    model = Classifier(tiny_network(), seed=seed, ema_decay=None)
    model.compile(SGD(0.0))  # only the random numbers change the loss
    losses = []
    for step in (0, 1, 2, 1):
      model.optimizer.iterations.assign(step)
      model.reset_metrics()
      losses.append(model.train_on_batch(*batch(), return_dict=True)["loss"])
    return losses

  first, second, third, repeated = losses(0)
  assert second == repeated and len({first, second, third}) == 3
  assert losses(1)[0] != first


def test_uint8_and_float_images_give_the_same_logits(compiled):
  model = compiled()
  images, _ = batch()
  np.testing.assert_array_equal(model(images), model(images.astype(np.float32)))
  white = model.normalize(tf.fill([1, 1, 1, 3], 255.0)).numpy().ravel()
  np.testing.assert_allclose(
    white, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], 1e-5
  )


def test_bfloat16_keeps_weights_and_normalization_in_float32(compiled):
  keras.mixed_precision.set_global_policy("mixed_bfloat16")
  model = compiled()
  images, labels = batch()
  assert model.normalize(images).dtype == tf.float32
  first = model.train_on_batch(images, labels, return_dict=True)["loss"]
  for _ in range(10):
    last = model.train_on_batch(
      images, labels, reset_metrics=True, return_dict=True
    )["loss"]
  assert np.isfinite(last) and last < first
  assert {v.dtype for v in model.network.variables} == {tf.float32}
  assert {v.dtype for v in model.averages} == {tf.float32}
  assert {v.dtype for v in model.optimizer.momentums} == {tf.float32}


def test_saves_and_loads_as_a_keras_model(tmp_path, tiny_network):
  model = Classifier(
    tiny_network(), label_smoothing=0.2, ema_decay=0.9, sam=SAM(0.1)
  )
  model.compile(SGD(0.1), steps_per_execution=2)
  dataset = tf.data.Dataset.from_tensor_slices(batch(16)).batch(8)
  model.fit(dataset, epochs=2, verbose=0)
  path = str(tmp_path / "model.keras")
  model.save(path)
  loaded = keras.models.load_model(path)
  for name, value in model.get_config().items():
    if name != "network":
      assert loaded.get_config()[name] == value
  for old, new in zip(model.network.layers, loaded.network.layers):
    assert new.get_config() == old.get_config()
  assert loaded.optimizer.get_config() == model.optimizer.get_config()
  for old, new in zip(
    [*model.weights, *model.optimizer.variables],
    [*loaded.weights, *loaded.optimizer.variables],
  ):
    np.testing.assert_array_equal(old, new)
  assert loaded.get_compile_config()["steps_per_execution"] == 2
  more = model.fit(dataset, epochs=1, verbose=0, shuffle=False).history
  same = loaded.fit(dataset, epochs=1, verbose=0, shuffle=False).history
  assert more == same


@pytest.fixture
def fit(tiny_network):
  """Returns a function that gives weights and logs after four steps."""
  return functools.partial(_fit, tiny_network)


def _fit(network, compile_options=(), **options):
  network = network()
  model = Classifier(network, ema_decay=0.9, **options)
  model.compile(SGD(0.1, clipping=0.05), **dict(compile_options))
  data = tf.data.Dataset.from_tensor_slices(batch(32))
  data = data.batch(8, drop_remainder=True)  # XLA wants to know the size
  history = model.fit(data, epochs=1, verbose=0).history
  variables = [*network.trainable_variables, *model.averages]
  return [v.numpy() for v in variables], history


def test_sam_with_rho_0_trains_bit_identically(fit):
  plain, history = fit()
  sharp, sharp_history = fit(sam=SAM(0.0))
  for a, b in zip(plain, sharp):
    np.testing.assert_array_equal(a, b)
  assert sharp_history["perturbed_loss"] == history["loss"]
  moved, _ = fit(sam=SAM(0.1))
  assert max(np.abs(a - b).max() for a, b in zip(plain, moved)) > 1e-4


def test_sam_in_several_steps_per_execution(fit):
  sam = SAM(0.1, ascent_fraction=0.5, every=2)
  expected, history = fit(sam=sam, micro_batches=2)
  actual, other = fit({"steps_per_execution": 2}, sam=sam, micro_batches=2)
  for a, b in zip(actual, expected):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert other["sam_active"] == history["sam_active"] == [0.5]


def test_micro_batches_train_as_the_whole_batch(fit):
  whole, history = fit()
  parts, other = fit(micro_batches=4)
  for a, b in zip(whole, parts):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  for name, value in history.items():
    assert other[name] == pytest.approx(value, rel=1e-4), name


def test_evaluation_returns_scores_only(tiny_network):
  model = Classifier(tiny_network(), sam=SAM(0.1))
  model.compile(SGD(0.1))
  result = model.evaluate(*batch(), verbose=0, return_dict=True)
  assert set(result) == {"loss", "top1", "top5"}
