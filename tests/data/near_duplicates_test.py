import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.near_duplicates import BITS, NearDuplicates, difference_hash
from nfnets_tf.errors import UserError
from tests.support.datasets import smooth_image as picture


def bits_apart(a, b):
  return bin(a ^ b).count("1")


def test_hash_of_a_worked_example():
  # Brighter towards the right in the upper half, towards the left below.
  ramp = np.linspace(0, 250, 90)
  rows = np.concatenate([np.tile(ramp, [40, 1]), np.tile(ramp[::-1], [40, 1])])
  image = np.stack([rows] * 3, axis=-1).astype(np.uint8)
  assert difference_hash(tf.constant(image)) == (2**32 - 1) << 32
  assert difference_hash(tf.fill([5, 5, 3], tf.constant(9, tf.uint8))) == 0


@pytest.mark.parametrize("seed", range(5))
def test_small_image_changes_flip_few_bits(seed):
  image = picture(seed)
  original = difference_hash(image)
  jpeg = tf.io.decode_jpeg(tf.io.encode_jpeg(image, quality=50))
  smaller = tf.image.resize(image, [61, 83], antialias=True)
  darker = tf.cast(tf.cast(image, tf.float32) * 0.8, tf.uint8)
  for changed in (jpeg, tf.cast(smaller, tf.uint8), darker):
    assert bits_apart(difference_hash(changed), original) <= 4
  other_hashes = [difference_hash(picture(100 + i)) for i in range(20)]
  assert min(bits_apart(original, other) for other in other_hashes) > 8


@pytest.mark.parametrize("distance", [0, 1, 3, 7, 15])
def test_index_equals_brute_force(distance):
  random = np.random.default_rng(distance)
  known = [int(x) for x in random.integers(0, 2**63, 50)]
  near = NearDuplicates(known, distance)
  for _ in range(300):
    number = known[random.integers(50)]
    for bit in random.choice(BITS, random.integers(0, 20), replace=False):
      number ^= 1 << int(bit)
    naive = any(bits_apart(number, other) <= distance for other in known)
    assert (number in near) == naive
  assert 0 not in NearDuplicates([], distance)


@pytest.mark.parametrize("distance", [-1, 16, 2.5])
def test_rejects_invalid_distances(distance):
  with pytest.raises(UserError, match="distance = .* is invalid"):
    NearDuplicates([], distance)
