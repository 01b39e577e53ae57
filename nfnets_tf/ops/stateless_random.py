"""Random numbers of a forward pass as a function of a seed.

Dropout and stochastic depth draw from a seed that the training step sets, so
that a step can be repeated with the same random numbers (the two passes of SAM,
a run that is resumed). The numbers of an example depend on its position in the
global batch only, not on the micro-batch or replica that computes it.

  with stateless_random.seed_scope(tf.stack([seed, step])):
    logits = network(images, training=True)
  with stateless_random.seed_scope(
    tf.stack([seed, step]), first_example=4, batch_size=8
  ):
    part = network(images[4:6], training=True)  # equal to logits[4:6]
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import zlib
from collections.abc import Iterator

import tensorflow as tf

# With "auto_select", XLA would draw other bits than other devices.
_ALGORITHM = "philox"
_ACTIVE = threading.local()  # replicas are traced in threads of their own


@dataclasses.dataclass(frozen=True)
class _Scope:
  seed: tf.Tensor
  first_example: tf.Tensor | int
  batch_size: tf.Tensor | int | None


def fold_seed(seed: tf.Tensor, index: int | tf.Tensor) -> tf.Tensor:
  """Derives an independent seed, int64 [2], from a seed [2] and an index."""
  return tf.random.experimental.stateless_fold_in(seed, index)


@contextlib.contextmanager
def seed_scope(
  seed: tf.Tensor,
  *,
  first_example: tf.Tensor | int = 0,
  batch_size: tf.Tensor | int | None = None,
) -> Iterator[None]:
  """Makes layers that are called inside draw from `seed`.

  Args:
    seed: integer tensor [2].
    first_example: position of the pass's first example in the global batch, an
      integer or integer scalar.
    batch_size: examples of the global batch; None is those of the pass.
  """
  before = getattr(_ACTIVE, "scope", None)
  _ACTIVE.scope = _Scope(seed, first_example, batch_size)
  try:
    yield
  finally:
    _ACTIVE.scope = before


def seed_for(name: str) -> tf.Tensor:
  """Returns an int32 seed [2] for the layer called `name`.

  Outside a `seed_scope` it is drawn from TensorFlow's global generator, so that
  a layer in any Keras model sees new numbers at every call.
  """
  scope = getattr(_ACTIVE, "scope", None)
  if scope is None:
    return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
  salt = zlib.crc32(name.encode()) & 0x7FFFFFFF
  return tf.random.experimental.stateless_fold_in(scope.seed, salt, _ALGORITHM)


def uniform(name: str, shape: list) -> tf.Tensor:
  """Draws numbers in [0, 1) for the layer called `name`.

  Args:
    name: of the layer; every layer's numbers differ.
    shape: of the result; its first entry counts the examples of the pass.

  Returns:
    A float32 tensor of shape `shape`: the rows of the pass's examples, out of
    the numbers of the global batch.
  """
  seed = seed_for(name)
  scope = getattr(_ACTIVE, "scope", None)
  if scope is None or scope.batch_size is None:
    return _uniform(shape, seed)
  numbers = _uniform([scope.batch_size, *shape[1:]], seed)
  begin = [scope.first_example] + [0] * (len(shape) - 1)
  return tf.slice(numbers, begin, shape)


def _uniform(shape: list, seed: tf.Tensor) -> tf.Tensor:
  # TensorFlow's random floats differ under XLA; its random bits do not.
  bits = tf.random.stateless_uniform(
    shape, seed, minval=None, dtype=tf.uint32, alg=_ALGORITHM
  )
  return tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) * 2.0**-24


def step_seed(seed: int, step: tf.Tensor) -> tf.Tensor:
  """Returns the int32 seed [2] of a step, an integer scalar."""
  return tf.stack([seed, tf.cast(step, tf.int32)])
