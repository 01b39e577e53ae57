"""Near-duplicates: images that look alike, found by a perceptual hash."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError

BITS = 64
_SIDE = 8


def difference_hash(image: tf.Tensor) -> int:
  """Returns 64 bits that survive another size, quality or brightness.

  The image becomes 8 x 9 grey levels; a bit says whether one is brighter than
  its left neighbour (dHash). An image without any structure has the hash 0.

  Args:
    image: uint8 [height, width, 3].
  """
  grey = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))
  small = tf.image.resize(
    grey, [_SIDE, _SIDE + 1], method="bilinear", antialias=True
  )[..., 0]
  bits = (small[:, 1:] > small[:, :-1] + 0.5).numpy().ravel()
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


class NearDuplicates:
  """Finds hashes that differ in few bits from one of a set.

  Two hashes that differ in d bits agree in one of d + 1 parts, so that few need
  to be compared.

  Args:
    hashes: of the set.
    distance: bits that may differ, from 0 to 15.

  Raises:
    UserError: if the distance cannot be used.
  """

  def __init__(self, hashes: Iterable[int], distance: int):
    if not isinstance(distance, int) or not 0 <= distance < 16:
      raise UserError(
        f"a distance of {distance!r} bits cannot be used; bind it to a whole"
        f" number from 0 to 15, of the {BITS} bits of a hash."
      )
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
