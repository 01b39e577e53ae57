"""Images made of records, one for one: a bad record keeps its place."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.data import tuning

# A record that stands for none, to fill a last batch.
PADDING = b"no record"
_WINDOW = 16


def load_batches(
  records: tf.data.Dataset,
  load: Callable,
  spec,
  reject: Callable | None,
  *,
  batch: int,
) -> tf.data.Dataset:
  """Applies `load` to every element, in parallel and in order, and batches.

  Where it raises, the element becomes zeros of weight 0: it is counted nowhere,
  and all others come when they would have come.

  Args:
    records: (position, serialized) elements.
    load: maps such an element to a structure of tensors.
    spec: of what it returns; all shapes are known.
    reject: is called in the data set with the positions and serialized records
      that could not be used, and returns an operation; None tells nobody, for
      data sets that run in other processes.
    batch: elements a batch; what is left over at the end is dropped.

  Returns:
    Batches (*what `load` returns, weights), the weights float32 [batch].
  """
  # Only a data set can survive an error. One for each element would cost a
  # tenth of the time; one for each window costs little.
  window = max(d for d in range(1, _WINDOW + 1) if batch % d == 0)
  parallel = tuning.parallel_calls()
  return (
    records.batch(window, drop_remainder=True)
    .interleave(
      lambda *examples: _load_window(examples, load, spec, reject, window),
      cycle_length=2 * parallel,  # so that none waits for its turn
      num_parallel_calls=parallel,
    )
    .batch(batch // window, drop_remainder=True)
    .map(_join)
  )


def _load_window(examples, load, spec, reject, window: int) -> tf.data.Dataset:
  """Returns a data set of one element: the window, zeros where it failed."""
  places = tf.range(window, dtype=tf.int64)
  loaded = tf.data.Dataset.from_tensor_slices((places, *examples)).map(
    lambda place, *record: (place, load(*record))
  )
  nothing = tf.nest.map_structure(
    lambda tensor: tf.zeros([0, *tensor.shape], tensor.dtype),
    (tf.TensorSpec([], tf.int64), spec),
  )
  return (
    loaded.ignore_errors()
    .batch(window)
    .concatenate(tf.data.Dataset.from_tensors(nothing))
    .take(1)
    .map(lambda there, found: _fill(there, found, examples, spec, reject))
  )


def _fill(there, found, examples, spec, reject):
  """Puts what was found in its places; returns (*structure, weights)."""
  window = examples[0].shape[0]

  def with_gaps():
    weights = tf.scatter_nd(
      there[:, tf.newaxis], tf.ones_like(there, tf.float32), [window]
    )
    lost = [tf.boolean_mask(part, weights < 1.0) for part in examples]
    told = [] if reject is None else [reject(*lost)]
    with tf.control_dependencies(told):
      return tf.nest.map_structure(_scatter(there, window), found), weights

  whole = tf.equal(tf.size(there), window)
  filled, weights = tf.cond(
    whole, lambda: (found, tf.ones([window])), with_gaps
  )
  filled = tf.nest.map_structure(
    lambda tensor, one: tf.ensure_shape(tensor, [window, *one.shape]),
    filled,
    spec,
  )
  return *filled, weights


def _scatter(there, window: int):
  """Returns a function that puts rows in their places among zeros."""

  def scatter(tensor):
    shape = tf.concat([[window], tf.shape(tensor)[1:]], axis=0)
    return tf.scatter_nd(
      there[:, tf.newaxis], tensor, tf.cast(shape, there.dtype)
    )

  return scatter


def _join(*windows):
  """Joins the first two axes: [windows, window, ...] to [batch, ...]."""
  return tf.nest.map_structure(
    lambda x: tf.reshape(x, [math.prod(x.shape[:2]), *x.shape[2:]]), windows
  )


def side_by_side_copies(*tensors):
  """Joins the axes of images and copies, [n, copies, ...] to [n * copies].

  Args:
    *tensors: images and labels, then weights [n].
  """
  *found, weights = tensors
  joined = side_by_side(*found)
  copies = joined[0].shape[0] // weights.shape[0]
  return *joined, tf.repeat(weights, copies)


def side_by_side(*tensors):
  """Joins the first two axes, which have known sizes, of every tensor."""
  return tf.nest.map_structure(
    lambda x: tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]]), tensors
  )
