import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.loading import (
  PADDING,
  load_batches,
  side_by_side,
  side_by_side_copies,
)


def load(position, serialized):
  good = tf.strings.regex_full_match(serialized, "[0-9]+")
  tf.debugging.Assert(good, [serialized])
  number = tf.strings.to_number(serialized, tf.int32)
  return tf.fill([2], number), position


def batches(records, batch, told=None):
  examples = tf.data.Dataset.from_tensor_slices(records).enumerate()
  spec = examples.map(load).element_spec
  table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.string, "")
  reject = None if told is None else table.insert
  found = load_batches(examples, load, spec, reject, batch=batch)
  found = list(found.as_numpy_iterator())
  if told is not None:
    told.extend(table.export()[1].numpy().tolist())
  return found


@pytest.mark.parametrize("batch", [1, 6, 7, 16, 34, 48])
def test_order_and_shape_whatever_the_batch(batch):
  records = [str(i) for i in range(97)]
  found = batches(records, batch)
  assert len(found) == 97 // batch
  for number, (pairs, positions, weights) in enumerate(found):
    expected = np.arange(batch) + number * batch
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(pairs, np.stack([expected] * 2, axis=1))
    np.testing.assert_array_equal(weights, np.ones(batch, np.float32))


def test_bad_records_keep_their_places_and_are_told():
  records = [str(i) for i in range(64)]
  bad = [0, 5, 6, 31, *range(32, 48)]  # a whole window among them
  for place in bad:
    records[place] = f"bad {place}"
  told = []
  found = batches(records, 32, told)
  weights = np.concatenate([weights for _, _, weights in found])
  np.testing.assert_array_equal(np.flatnonzero(weights == 0), bad)
  pairs = np.concatenate([pairs for pairs, _, _ in found])
  expected = np.where(weights > 0, np.arange(64), 0)
  np.testing.assert_array_equal(pairs[:, 0], expected)
  assert sorted(told) == sorted(f"bad {place}".encode() for place in bad)


def test_without_anybody_to_tell():
  ((_, _, weights),) = batches(["1", "x", "3", PADDING.decode()], 4)
  np.testing.assert_array_equal(weights, [1, 0, 1, 0])


def test_parts_of_a_batch_stand_side_by_side():
  def example(number):
    return tf.fill([2, 3], number), {"label": (number, -number)}

  parts = tf.data.Dataset.range(24).map(example).batch(3, drop_remainder=True)
  joined = parts.batch(4, drop_remainder=True).map(side_by_side)
  whole = tf.data.Dataset.range(24).map(example).batch(12, drop_remainder=True)
  assert joined.element_spec == whole.element_spec
  assert len(joined) == len(whole) == 2
  for got, want in zip(joined, whole):
    tf.nest.map_structure(np.testing.assert_array_equal, got, want)


def test_every_copy_has_the_weight_of_its_image():
  def example(number):
    copies = tf.range(3, dtype=tf.int64)
    images = tf.tile(10 * number + copies[:, None], [1, 2])
    return images, (10 * number + copies, copies), tf.cast(number, tf.float32)

  batches = tf.data.Dataset.range(4).map(example).batch(2, drop_remainder=True)
  _, (images, (first, second), weights) = batches.map(side_by_side_copies)
  numbers = [20, 21, 22, 30, 31, 32]
  np.testing.assert_array_equal(images, [[n, n] for n in numbers])
  np.testing.assert_array_equal(first, numbers)
  np.testing.assert_array_equal(second, [0, 1, 2] * 2)
  np.testing.assert_array_equal(weights, [2.0] * 3 + [3.0] * 3)
