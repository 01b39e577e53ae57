import os
import time

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.augmentation import Augmentation
from nfnets_tf.data.loading import (
  ExampleLoader,
  dataset_options,
  flatten_copies,
  flatten_leading_axes,
  map_skipping_errors,
  parallel_calls,
)
from nfnets_tf.data.preprocessing import Resize
from nfnets_tf.data.tfrecords import Fields, Record
from tests.support.datasets import SMALL_IMAGE as IMAGE
from tests.support.datasets import serialized_example

RAW = Fields("x", "y", raw=True, height="h", width="w")


def loader(fields=None, transforms=None, **options):
  transforms = transforms or [Resize(image_size=4)]
  return ExampleLoader(fields or Fields(), 3, transforms, **options)


def record(label):
  encoded = tf.io.encode_png(IMAGE).numpy()
  return Record(encoded, label, "", "", "png").serialize()


def raw_record(content=None):
  content = IMAGE.tobytes() if content is None else content
  return serialized_example(x=content, y=1, h=4, w=4)


@pytest.mark.parametrize(
  "fields, serialized",
  [
    (Fields(), record(1)),
    (Fields(first_label=1), record(2)),
    (RAW, raw_record()),
  ],
)
def test_loads_an_image_and_its_label(fields, serialized):
  image, label = loader(fields).load_evaluation(tf.constant(serialized))
  np.testing.assert_array_equal(image, IMAGE)
  assert label == 1 and label.dtype == tf.int32


@pytest.mark.parametrize(
  "serialized, options, message",
  [
    (record(-1), {}, "out of range"),
    (record(3), {}, "out of range"),
    (record(0), {"max_pixels": 15}, "too large"),
    (raw_record(b"abc"), {"fields": RAW}, None),
  ],
)
def test_rejects_invalid_records(serialized, options, message):
  with pytest.raises(tf.errors.InvalidArgumentError, match=message):
    loader(**options).load_evaluation(tf.constant(serialized))


def test_stacks_copies():
  number = tf.constant(0, tf.int64)
  for copies, shape in ((1, (4, 4, 3)), (2, (2, 4, 4, 3))):
    load = loader(augmentation=Augmentation(multiplicity=copies))
    image, label = load.load_training(tf.constant(record(1)), 3, number, number)
    assert image.shape == shape and label.shape == shape[:-3]


def fill_randomly(image, seed):
  value = tf.random.stateless_uniform([], seed, 0, 256, tf.int32)
  return tf.fill([4, 4, 3], tf.cast(value, tf.uint8))


def as_it_is(image, seed):
  del seed
  return tf.ensure_shape(image, [4, 4, 3])


def halves(first, second, seed):
  del seed
  return tf.concat([first[:2], second[2:]], axis=0), tf.constant(0.5)


def corners(seed, number, transform=fill_randomly, **augmentation):
  """Returns the first and the last value of a training image."""
  augmentation = Augmentation(**augmentation)
  serialized = tf.constant(raw_record())
  if augmentation.batch_mixers:
    serialized = tf.stack([serialized] * 2)
  load = loader(RAW, [transform], augmentation=augmentation)
  number = tf.constant(number, tf.int64)
  image, _ = load.load_training(serialized, seed, number, number)
  return image.numpy().ravel()[0], image.numpy().ravel()[-1]


def test_draws_follow_from_the_seed_and_the_number():
  assert corners(1, 5) == corners(1, 5)
  draws = {corners(seed, n) for seed in range(3) for n in range(3)}
  assert len(draws) > 6


def test_images_of_a_pair_are_drawn_independently():
  pairs = [corners(0, n, batch_mixers=[halves]) for n in range(5)]
  assert sum(a != b for a, b in pairs) >= 4


def test_applies_post_mix_transforms_without_mixing():
  plain = [corners(0, n, as_it_is) for n in range(4)]
  assert plain == [(0, 47)] * 4  # the image itself
  changed = {
    corners(0, n, as_it_is, post_mix_transforms=[fill_randomly])
    for n in range(4)
  }
  assert len(changed) > 2


def parse_number(position, serialized):
  valid = tf.strings.regex_full_match(serialized, "[0-9]+")
  tf.debugging.Assert(valid, [serialized])
  number = tf.strings.to_number(serialized, tf.int32)
  return tf.fill([2], number), position


def batches(records, batch_size, report=None):
  examples = tf.data.Dataset.from_tensor_slices(records).enumerate()
  mapped = map_skipping_errors(
    examples,
    parse_number,
    spec=examples.map(parse_number).element_spec,
    batch_size=batch_size,
    report=report,
  )
  return list(mapped.as_numpy_iterator())


@pytest.mark.parametrize("batch_size", [1, 7, 34, 48])
def test_keeps_order_and_shape_at_any_batch_size(batch_size):
  result = batches([str(i) for i in range(97)], batch_size)
  assert len(result) == 97 // batch_size
  for number, (pairs, positions, weights) in enumerate(result):
    expected = np.arange(batch_size) + number * batch_size
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(pairs, np.stack([expected] * 2, axis=1))
    np.testing.assert_array_equal(weights, np.ones(batch_size, np.float32))


@pytest.mark.parametrize("reports", [True, False])
def test_invalid_records_keep_their_places_and_are_reported(reports):
  records = [str(i) for i in range(64)]
  invalid = [0, 5, 6, 31, *range(32, 48)]  # a whole window among them
  for place in invalid:
    records[place] = f"bad {place}"
  table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.string, "")
  result = batches(records, 32, table.insert if reports else None)
  weights = np.concatenate([weights for _, _, weights in result])
  np.testing.assert_array_equal(np.flatnonzero(weights == 0), invalid)
  pairs = np.concatenate([pairs for pairs, _, _ in result])
  expected = np.where(weights > 0, np.arange(64), 0)
  np.testing.assert_array_equal(pairs[:, 0], expected)
  reported = dict(zip(*(part.numpy().tolist() for part in table.export())))
  expected = {place: records[place].encode() for place in invalid}
  assert reported == (expected if reports else {})


def test_flattened_batches_equal_larger_batches():
  def example(number):
    return tf.fill([2, 3], number), {"label": (number, -number)}

  parts = tf.data.Dataset.range(24).map(example).batch(3, drop_remainder=True)
  joined = parts.batch(4, drop_remainder=True).map(flatten_leading_axes)
  whole = tf.data.Dataset.range(24).map(example).batch(12, drop_remainder=True)
  assert joined.element_spec == whole.element_spec
  assert len(joined) == len(whole) == 2
  for got, want in zip(joined, whole):
    tf.nest.map_structure(np.testing.assert_array_equal, got, want)


def test_copies_have_the_weight_of_their_image():
  images = tf.constant([[[20], [21], [22]], [[30], [31], [32]]])
  labels = tf.constant([[0, 1, 2], [3, 4, 5]])
  images, labels, weights = flatten_copies(images, labels, tf.constant([2, 3]))
  np.testing.assert_array_equal(images[:, 0], [20, 21, 22, 30, 31, 32])
  np.testing.assert_array_equal(labels, range(6))
  np.testing.assert_array_equal(weights, [2] * 3 + [3] * 3)


def test_parallel_calls_are_the_cores_of_this_process(monkeypatch):
  if hasattr(os, "sched_getaffinity"):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
    assert parallel_calls() == 3
  monkeypatch.delattr(os, "sched_getaffinity", raising=False)
  monkeypatch.setattr(os, "cpu_count", lambda: 4)
  assert parallel_calls() == 4


def test_options_are_deterministic_without_tuning_and_sharding():
  options = dataset_options()
  assert options.deterministic and not options.autotune.enabled
  assert (
    options.experimental_distribute.auto_shard_policy
    == tf.data.experimental.AutoShardPolicy.OFF
  )


@pytest.mark.soak
def test_destroys_iterators_without_delay(iterate, monkeypatch):
  """With tf.data's autotuner on, a third of them takes up to 5.1 s."""
  monkeypatch.setattr(tf.data.Dataset, "__iter__", iterate)
  numbers = tf.data.Dataset.range(1 << 40).map(lambda x: x + 1, 2)
  iterators = [
    iter(numbers.prefetch(2).with_options(dataset_options())) for _ in range(12)
  ]
  for iterator in iterators:
    next(iterator)
  time.sleep(2.7)
  start = time.perf_counter()
  del iterator
  iterators.clear()
  assert time.perf_counter() - start < 1
