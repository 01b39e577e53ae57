import itertools

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.sparse_kernels import sparse_convolutions
from nfnets_tf.optim.adaptive_clipping import AGC
from nfnets_tf.optim.pruning import Pruning
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from tests.support import tiny

STEPS = 8
R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [8 * STEPS, 32, 32, 3]).astype(np.uint8)
LABELS = R.integers(0, 4, 8 * STEPS)


def batches(first=0, last=STEPS):
  part = slice(8 * first, 8 * last)
  dataset = tf.data.Dataset.from_tensor_slices((IMAGES[part], LABELS[part]))
  return dataset.batch(8)


def build(sparsity=0.75, optimizer=None, compile_options=None, **options):
  """Returns a classifier whose second convolution is pruned after 2 to 6."""
  keras.utils.set_random_seed(1)
  schedule = {"total_steps": STEPS, "interval": 0.125}
  for name in ("begin", "end"):
    if name in options:
      schedule[name] = options.pop(name)
  model = Classifier(
    tiny.network(sparse="live"),
    ema_decay=0.9,
    pruning=None if sparsity is None else Pruning(sparsity, **schedule),
    **options,
  )
  optimizer = optimizer or SGD(0.5, clipping=0.05, weight_decay=1e-2)
  model.compile(optimizer, **(compile_options or {}))
  return model


def steps(model):
  """Runs one step after another: a `fit` for each would wait for its end."""
  step = tf.function(model.make_step, autograph=False)
  for batch in batches():
    step(batch)
    yield


def kernel_of(model):
  return model.network.get_layer("conv").kernel


def average_of(model):
  names = {id(v): name for name, v in model.named_weights().items()}
  return model.named_averages()[names[id(kernel_of(model))]]


def standardized_by_loops(kernel, gain):
  """Each filter centered and scaled over the entries that are not zero."""
  result = np.zeros(kernel.shape)
  for unit in range(kernel.shape[-1]):
    filter_ = kernel[..., unit].astype(np.float64)
    live = filter_ != 0
    centered = filter_[live] - filter_[live].mean()
    result[..., unit][live] = centered * gain[unit] / np.linalg.norm(centered)
  return result


@pytest.mark.parametrize(
  "begin, end, interval", [(0.25, 0.75, 0.005), (0.0, 1.0, 0.05), (0.5, 0.5, 1)]
)
def test_schedule_is_the_cubic_one_in_stairs(begin, end, interval):
  total, final = 1000, 0.8
  pruning = Pruning(
    final, total_steps=total, begin=begin, end=end, interval=interval
  )
  first, last = begin * total, end * total
  sparsity, expected = 0.0, []
  for step in range(total + 1):
    if step >= last:
      sparsity = final
    elif step > first and (step - first) % (interval * total) == 0:
      left = 1 - (step - first) / (last - first)
      sparsity = final * (1 - left**3)
    expected.append(sparsity)
  np.testing.assert_allclose(
    pruning.sparsity_after(np.arange(total + 1)), expected, atol=1e-12
  )
  assert pruning.mean_sparsity() == pytest.approx(np.mean(expected[:-1]))


def test_mean_density_of_the_default_window_is_the_papers():
  pruning = Pruning(0.8, total_steps=100_000, interval=1e-5)
  assert pruning.mean_sparsity() == pytest.approx(0.625 * 0.8, rel=1e-4)


def test_removes_the_smallest_standardized_weights_and_follows_the_schedule():
  model = build()
  seen = []
  for _ in steps(model):
    seen.append(float(np.mean(kernel_of(model).numpy() == 0)))
  planned = model.pruning.sparsity_after(np.arange(1, STEPS + 1))
  np.testing.assert_allclose(seen, np.round(planned * 576) / 576)
  assert sorted(set(seen)) == seen[1:6] and seen[-1] == 0.75


@pytest.mark.parametrize("sparsity", [0.75, "2:4", "1:4"])
def test_removes_what_a_sort_of_the_standardized_kernel_removes(sparsity):
  """All at once, after a step that changes nothing."""
  model = build(sparsity, SGD(0.0), begin=0.125, end=0.125)
  layer = model.network.get_layer("conv")
  before = layer.kernel.numpy()
  magnitude = np.abs(standardized_by_loops(before, layer.gain.numpy()))
  next(steps(model))
  expected = before.copy()
  if sparsity == 0.75:
    smallest = np.argsort(magnitude, axis=None)[: 576 * 3 // 4]
    expected.flat[smallest] = 0
  else:
    keep = int(sparsity[0])
    for y, x, unit, group in itertools.product(
      range(3), range(3), range(8), (0, 4)
    ):
      part = magnitude[y, x, group : group + 4, unit]
      for channel in np.argsort(part)[: 4 - keep]:
        expected[y, x, group + channel, unit] = 0
  np.testing.assert_array_equal(layer.kernel, expected)
  np.testing.assert_array_equal(average_of(model) == 0, expected == 0)


def test_groups_lose_one_entry_after_another():
  pruning = Pruning("1:4", total_steps=1000)
  levels = pruning.sparsity_after(np.arange(1001))
  assert list(np.unique(levels)) == [0, 0.25, 0.5, 0.75]
  assert (np.diff(levels) >= 0).all() and levels[750] == 0.75


@pytest.mark.parametrize(
  "optimizer, options",
  [
    (lambda: SGD(0.5, clipping=0.05, weight_decay=1e-2), {"sam": SAM(0.1)}),
    (
      lambda: SGD(0.5, clipping=0.05),
      {"sam": SAM(0.1, every=2, scope="micro_batch"), "micro_batches": 2},
    ),
    (lambda: AGC(keras.optimizers.AdamW(1e-2)), {}),
  ],
  ids=["SGD and SAM", "micro-batches", "AGC and AdamW"],
)
def test_what_is_pruned_stays_zero_in_weights_and_averages(optimizer, options):
  optimizer = optimizer()
  model = build(0.75, optimizer, **options)
  dead = np.zeros(kernel_of(model).shape, bool)
  for _ in steps(model):
    zero = kernel_of(model).numpy() == 0
    assert zero[dead].all()
    np.testing.assert_array_equal(average_of(model).numpy() == 0, zero)
    if isinstance(optimizer, SGD):
      (momentum,) = optimizer.slots(kernel_of(model))
      assert (momentum.numpy()[zero] == 0).all()
    dead = zero
  assert dead.mean() == 0.75


def test_a_step_compiled_as_a_whole_prunes_the_same():
  plain, compiled = build(), build(compile_options={"jit_compile": True})
  for model in (plain, compiled):
    model.fit(batches(), verbose=0)
  np.testing.assert_allclose(kernel_of(plain), kernel_of(compiled), atol=1e-5)
  assert np.mean(kernel_of(compiled) == 0) == 0.75


def test_equal_weights_are_pruned_as_many_as_others():
  """Both weights of a filter of two have the same magnitude."""
  model = build(0.5, SGD(0.0), begin=0.125, end=0.125)
  kernel = kernel_of(model)
  signs = np.where(np.arange(576).reshape(kernel.shape) % 16 < 8, 1.0, -1.0)
  kernel.assign(signs)
  next(steps(model))
  assert np.mean(kernel.numpy() == 0) == 0.5
  assert float(model.pruner.sparsity()) == 0.5


def test_a_sparsity_of_0_changes_no_bit():
  sparse, dense = build(0.0), build(None)
  for model in (sparse, dense):
    model.fit(batches(), verbose=0)
  for a, b in zip(sparse.variables, dense.variables):
    np.testing.assert_array_equal(a, b)


def test_a_saved_model_goes_on_bit_for_bit(tmp_path):
  whole = build()
  whole.fit(batches(), verbose=0)
  half = build()
  half.fit(batches(0, 4), verbose=0)
  half.save(tmp_path / "half.keras")
  loaded = keras.models.load_model(tmp_path / "half.keras")
  loaded.fit(batches(4), verbose=0)
  assert loaded.pruning.get_config() == whole.pruning.get_config()
  for a, b in zip(whole.network.variables, loaded.network.variables):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(whole.averages, loaded.averages):
    np.testing.assert_array_equal(a, b)


def test_pruned_weights_stay_zero_when_training_goes_on_without_pruning():
  pruned = build()
  pruned.fit(batches(), verbose=0)
  later = build(None)
  later.network.set_weights(pruned.network.get_weights())
  later.fit(batches(), verbose=0)
  zero = kernel_of(pruned).numpy() == 0
  np.testing.assert_array_equal(kernel_of(later).numpy() == 0, zero)
  assert not np.array_equal(kernel_of(later), kernel_of(pruned))


def test_replicas_prune_alike_and_as_one_device():
  results = []
  for strategy in (
    tf.distribute.OneDeviceStrategy("CPU:0"),
    tf.distribute.MirroredStrategy(
      ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    ),
  ):
    size = 8 // strategy.num_replicas_in_sync
    dataset = batches().unbatch().batch(size)
    with strategy.scope():
      model = build()
    model.fit(
      strategy.distribute_datasets_from_function(lambda _, d=dataset: d),
      steps_per_epoch=STEPS,
      verbose=0,
    )
    copies = strategy.experimental_local_results(kernel_of(model))
    for copy in copies[1:]:
      np.testing.assert_array_equal(copy, copies[0])
    results.append(copies[0].numpy())
  one, two = results
  np.testing.assert_array_equal(one == 0, two == 0)
  np.testing.assert_allclose(one, two, atol=1e-6)


def test_erdos_renyi_spares_small_kernels_and_keeps_the_mean():
  pruning = Pruning(0.8, total_steps=10, distribution="erdos_renyi")
  layers = sparse_convolutions(NFNet("femto", 4, sparse="live"))
  shapes = [tuple(layer.kernel.shape) for layer in layers]
  sizes = np.array([np.prod(shape) for shape in shapes])
  sparsities = np.array(pruning.sparsities_of(layers))
  assert (sparsities * sizes).sum() == pytest.approx(0.8 * sizes.sum())
  free = sparsities > 0
  scale = (1 - sparsities) * sizes / [sum(shape) for shape in shapes]
  np.testing.assert_allclose(scale[free], scale[free][0])
  assert (scale[~free] <= scale[free][0]).all()
  assert sparsities.min() < 0.7 < 0.8 < sparsities.max()


def test_prunes_all_convolutions_but_the_stem_and_what_is_frozen():
  network = NFNet("femto", 4, sparse="live")
  names = {layer.name for layer in sparse_convolutions(network)}
  assert names == {"conv_shortcut", "conv0", "conv1", "conv1b", "conv2"} | {
    "final_conv"
  }
  Classifier(network, frozen=["stage1", "final_conv"])
  left = sparse_convolutions(network)
  assert not network.get_layer("final_conv").trainable
  first = network.get_layer("nf_block")
  assert not first.conv0.trainable
  for distribution in ("uniform", "erdos_renyi"):
    pruning = Pruning(0.5, total_steps=9, distribution=distribution)
    pairs = list(zip(left, pruning.sparsities_of(left)))
    assert all(s == 0 for x, s in pairs if not x.trainable)
    size = {x: x.kernel.shape.num_elements() for x, _ in pairs}
    pruned = sum(s * size[x] for x, s in pairs)
    trained = sum(size[x] for x, s in pairs if x.trainable)
    assert pruned == pytest.approx(0.5 * trained)


@pytest.mark.parametrize(
  "problem, expected",
  [
    (lambda: Pruning(1.0, total_steps=9), "1.0.*\\[0, 1\\)"),
    (lambda: Pruning("4:4", total_steps=9), "4:4.*n < m"),
    (lambda: Pruning("2/4", total_steps=9), "2/4.*'2:4'"),
    (lambda: Pruning(0.5, total_steps=9, begin=0.8), "0.75.*begin = 0.8"),
    (
      lambda: Pruning("2:4", total_steps=9, distribution="erdos_renyi"),
      "erdos_renyi.*'uniform'",
    ),
    (
      lambda: Classifier(tiny.network(), pruning=Pruning(0.5, total_steps=9)),
      "sparse='live'",
    ),
    (lambda: build("1:3"), "1:3.*8 input channels"),
    (lambda: build(optimizer=SGD(0.1, use_ema=True)), "use_ema.*ema_decay"),
    (
      lambda: build(optimizer=AGC(keras.optimizers.Adam(0.1, use_ema=True))),
      "use_ema.*ema_decay",
    ),
    (lambda: NFNet("femto", 4, sparse="yes"), "sparse.*'yes'.*'live'"),
  ],
)
def test_refuses_what_cannot_be_pruned(problem, expected):
  with pytest.raises(UserError, match=f"(?s){expected}"):
    problem()
