import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import tuning
from nfnets_tf.data.mixing import CutMix, MixUp
from nfnets_tf.errors import UserError

FIRST = tf.constant(
  np.random.default_rng(0).integers(0, 100, [24, 32, 3], np.uint8)
)
SECOND = tf.constant(
  np.random.default_rng(1).integers(150, 256, [24, 32, 3], np.uint8)
)


def draw(mixer, count):
  numbers = tf.data.Dataset.range(count).with_options(tuning.options())
  mixed = numbers.map(lambda i: mixer(FIRST, SECOND, tf.stack([5, i])))
  return list(mixed.as_numpy_iterator())


def test_mixup_is_the_blend_that_its_share_names():
  first, second = FIRST.numpy().astype(float), SECOND.numpy().astype(float)
  for image, share in draw(MixUp(), 50):
    assert image.dtype == np.uint8
    expected = share * first + (1 - share) * second
    assert np.abs(image - expected).max() < 0.51


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_from_the_beta_distribution(alpha):
  shares = np.array([share for _, share in draw(MixUp(alpha=alpha), 3_000)])
  assert shares.min() >= 0 and shares.max() <= 1
  assert abs(shares.mean() - 0.5) < 0.04
  variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
  assert abs(shares.var() / variance - 1) < 0.1


def test_cutmix_shows_a_box_and_its_share_counts_the_pixels():
  boxes, centres = 0, []
  for image, share in draw(CutMix(), 200):
    of_first = (image == FIRST.numpy()).all(axis=-1)
    of_second = (image == SECOND.numpy()).all(axis=-1)
    assert (of_first ^ of_second).all()
    assert share == pytest.approx(of_first.mean(), abs=1e-6)
    rows, columns = np.nonzero(of_first)
    if len(rows):
      boxes += 1
      centres.append((rows.mean() / 24, columns.mean() / 32))
      box = of_first[rows.min() : rows.max() + 1]
      assert box[:, columns.min() : columns.max() + 1].all()
  assert boxes > 150
  # Row and column are drawn each for itself.
  assert abs(np.corrcoef(np.array(centres).T)[0, 1]) < 0.3


def test_cutmix_boxes_are_of_every_size_and_cut_at_the_border():
  shares = np.array([share for _, share in draw(CutMix(), 2_000)])
  # A centre anywhere: of a box of half-sides h a part of (1 - h/2)^2 is inside.
  area = np.linspace(0, 1, 100_001)
  expected = (area * (1 - np.sqrt(area) / 4) ** 2).mean()
  assert shares.mean() == pytest.approx(expected, abs=0.03)
  assert shares.min() < 0.01 and shares.max() > 0.8


@pytest.mark.parametrize("mixer", [MixUp(), CutMix()])
def test_inside_and_outside_of_tf_data_alike(mixer):
  for i, (image, share) in enumerate(draw(mixer, 5)):
    outside = mixer(FIRST, SECOND, tf.constant([5, i], tf.int64))
    np.testing.assert_array_equal(image, outside[0])
    assert share == outside[1].numpy()


def test_alpha_must_be_positive():
  with pytest.raises(UserError, match="alpha = 0 "):
    MixUp(alpha=0)
