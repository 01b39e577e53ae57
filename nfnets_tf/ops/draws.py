"""Random numbers of a forward pass as a function of a seed.

Dropout and stochastic depth draw from a seed that the training step sets, so
that a step can be repeated with the same draws (the two passes of SAM, a run
that is resumed) and so that replicas differ. Synopsis:

  with draws.using(tf.stack([seed, step])):
    logits = network(images, training=True)
"""

import contextlib
import threading
import zlib
from collections.abc import Iterator

import tensorflow as tf

_ACTIVE = threading.local()  # replicas are traced in threads of their own


@contextlib.contextmanager
def using(seed: tf.Tensor) -> Iterator[None]:
  """Makes layers called inside draw from `seed`, an integer tensor [2]."""
  before = getattr(_ACTIVE, "seed", None)
  _ACTIVE.seed = seed
  try:
    yield
  finally:
    _ACTIVE.seed = before


def seed_for(name: str) -> tf.Tensor:
  """Returns a seed [2] for the layer called `name`.

  Outside `using` it is drawn from TensorFlow's own generator, so that a layer
  in any Keras model still sees new numbers at every call.
  """
  seed = getattr(_ACTIVE, "seed", None)
  if seed is None:
    return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
  salt = zlib.crc32(name.encode()) & 0x7FFFFFFF
  return tf.random.experimental.stateless_fold_in(seed, salt)
