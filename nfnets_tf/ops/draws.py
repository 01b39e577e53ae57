"""Random numbers of a forward pass as a function of a seed.

Dropout and stochastic depth draw from a seed that the training step sets, so
that a step can be repeated with the same draws (the two passes of SAM, a run
that is resumed). An example's draws depend on its place in the global batch
alone, not on how many others share its pass or its replica. Synopsis:

  with draws.using(tf.stack([seed, step])):
    logits = network(images, training=True)
  with draws.using(tf.stack([seed, step]), start=4, whole=8):
    rest = network(images[4:6], training=True)  # equal to logits[4:6]
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import zlib
from collections.abc import Iterator

import tensorflow as tf

# Left to choose, XLA would draw other bits than other devices.
_ALGORITHM = "philox"
_ACTIVE = threading.local()  # replicas are traced in threads of their own


@dataclasses.dataclass(frozen=True)
class _Step:
  seed: tf.Tensor
  start: tf.Tensor | int
  whole: tf.Tensor | int | None


@contextlib.contextmanager
def using(
  seed: tf.Tensor,
  *,
  start: tf.Tensor | int = 0,
  whole: tf.Tensor | int | None = None,
) -> Iterator[None]:
  """Makes layers called inside draw from `seed`.

  Args:
    seed: integer tensor [2].
    start: position, in the whole batch, of the first example of a pass.
    whole: number of examples of the whole batch; None is those of the pass.
  """
  before = getattr(_ACTIVE, "step", None)
  _ACTIVE.step = _Step(seed, start, whole)
  try:
    yield
  finally:
    _ACTIVE.step = before


def seed_for(name: str) -> tf.Tensor:
  """Returns a seed [2] for the layer called `name`.

  Outside `using` it is drawn from TensorFlow's own generator, so that a layer
  in any Keras model still sees new numbers at every call.
  """
  step = getattr(_ACTIVE, "step", None)
  if step is None:
    return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
  salt = zlib.crc32(name.encode()) & 0x7FFFFFFF
  return tf.random.experimental.stateless_fold_in(step.seed, salt, _ALGORITHM)


def uniform(name: str, shape: list) -> tf.Tensor:
  """Draws numbers in [0, 1) for the layer called `name`.

  Args:
    name: of the layer.
    shape: of the result; its first entry counts the examples of the pass.

  Returns:
    A float32 tensor: of the numbers of the whole batch, those of this pass.
  """
  seed = seed_for(name)
  step = getattr(_ACTIVE, "step", None)
  if step is None or step.whole is None:
    return _uniform(shape, seed)
  numbers = _uniform([step.whole, *shape[1:]], seed)
  begin = [step.start] + [0] * (len(shape) - 1)
  return tf.slice(numbers, begin, shape)


def _uniform(shape: list, seed: tf.Tensor) -> tf.Tensor:
  # TensorFlow's own floats are not the same under XLA; the bits are.
  bits = tf.random.stateless_uniform(
    shape, seed, minval=None, dtype=tf.uint32, alg=_ALGORITHM
  )
  return tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) * 2.0**-24


def step_seed(seed: int, step: tf.Tensor) -> tf.Tensor:
  """Returns the seed [2] of a step, the same on all replicas."""
  return tf.stack([seed, tf.cast(step, tf.int32)])
