"""Near-duplicates of images, found by a perceptual hash."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from nfnets_tf.ranges import accepts, integer

BITS = 64
MAX_DISTANCE = 15
_SIDE = 8


def difference_hash(image: tf.Tensor) -> int:
  """Returns a hash that survives another size, quality or brightness (dHash).

  The image is reduced to 8 x 9 gray levels; each bit states whether one of them
  is brighter than its left neighbor. The hash of a uniform image is 0.

  Args:
    image: uint8 [height, width, 3].

  Returns:
    An integer of 64 bits.
  """
  gray = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))
  small = tf.image.resize(
    gray, [_SIDE, _SIDE + 1], method="bilinear", antialias=True
  )[..., 0]
  # Half a gray level, so that rounding noise in uniform areas sets no bit.
  bits = (small[:, 1:] > small[:, :-1] + 0.5).numpy().ravel()
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


@accepts(distance=integer(0, MAX_DISTANCE))
class NearDuplicates:
  """A set of hashes that contains every hash near one of them.

  Two hashes that differ in d bits agree in at least one of d + 1 parts, so that
  few need to be compared.

  Args:
    hashes: of 64 bits each.
    distance: number of bits that may differ, from 0 to 15.

  Raises:
    UserError: if the distance is invalid.
  """

  def __init__(self, hashes: Iterable[int], distance: int):
    self._distance = distance
    edges = np.linspace(0, BITS, distance + 2).astype(int).tolist()
    self._parts = [(a, (1 << (b - a)) - 1) for a, b in zip(edges, edges[1:])]
    self._tables = [collections.defaultdict(list) for _ in self._parts]
    for number in set(hashes):
      for table, (shift, mask) in zip(self._tables, self._parts):
        table[number >> shift & mask].append(number)

  def __contains__(self, number: int) -> bool:
    return any(
      bin(number ^ other).count("1") <= self._distance
      for table, (shift, mask) in zip(self._tables, self._parts)
      for other in table.get(number >> shift & mask, ())
    )
