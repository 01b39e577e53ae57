import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocess
from nfnets_tf.data.tfrecords import Fields, Record
from nfnets_tf.data.views import Views
from tests.support.datasets import SMALL_IMAGE as IMAGE
from tests.support.datasets import serialized_example as example


def views(**options):
  operations = [preprocess.Resize(image_size=4)]
  return Views(operations, (), (), **{"num_classes": 3, **options})


def record(label):
  encoded = tf.io.encode_png(IMAGE).numpy()
  return Record(encoded, label, "", "", "png").serialize()


def test_an_image_and_its_label():
  image, label = views().evaluation(tf.constant(record(2)), Fields())
  np.testing.assert_array_equal(image, IMAGE)
  assert label == 2 and label.dtype == tf.int32


def test_classes_may_be_counted_from_1():
  _, label = views().evaluation(record(3), Fields(first_label=1))
  assert label == 2


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(label):
  with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
    views().evaluation(record(label), Fields())


def test_images_that_are_too_large_are_refused():
  with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
    views(max_pixels=15).evaluation(record(0), Fields())


def test_raw_images_under_other_names():
  fields = Fields("x", "y", raw=True, height="h", width="w")
  serialized = example(x=IMAGE.tobytes(), y=1, h=4, w=4)
  image, label = views().evaluation(serialized, fields)
  np.testing.assert_array_equal(image, IMAGE)
  assert label == 1
  with pytest.raises(tf.errors.InvalidArgumentError):
    views().evaluation(example(x=b"abc", y=1, h=4, w=4), fields)


def test_copies_are_stacked_and_one_is_not():
  seed, number = 3, tf.constant(0, tf.int64)
  for copies, shape in ((1, (4, 4, 3)), (2, (2, 4, 4, 3))):
    image, label = views(multiplicity=copies).training(
      tf.constant(record(1)), Fields(), seed, number, number
    )
    assert image.shape == shape and label.shape == shape[:-3]
  assert views().sources == 1 and views().image_shape() == (4, 4, 3)


class Draw:
  """Fills the image with what it draws."""

  def __call__(self, image, seed):
    value = tf.random.stateless_uniform([], seed, 0, 256, tf.int32)
    return tf.fill(image.shape, tf.cast(value, tf.uint8))


def drawn(seed, number, operations=None, mixers=(), mixed=()):
  serialized = tf.constant(example(x=IMAGE.tobytes(), y=0, h=4, w=4))
  fields = Fields("x", "y", raw=True, height="h", width="w")
  serialized = tf.stack([serialized] * 2) if mixers else serialized
  turn = tf.constant(number, tf.int64)
  operations = (Draw(),) if operations is None else operations

  def shaped(image, seed):
    del seed
    return tf.ensure_shape(image, [4, 4, 3])

  made = Views((shaped, *operations), mixers, mixed, num_classes=3)
  image, _ = made.training(serialized, fields, seed, turn, turn)
  return image.numpy().ravel()[0], image.numpy().ravel()[-1]


def test_draws_follow_from_the_seed_and_the_number():
  assert drawn(1, 5) == drawn(1, 5)
  assert len({drawn(seed, n) for seed in range(3) for n in range(3)}) > 6


def test_the_two_of_a_pair_are_drawn_each_for_itself():
  def halves(first, second, seed):
    del seed
    return tf.concat([first[:2], second[2:]], axis=0), tf.constant(0.5)

  pairs = [drawn(0, n, mixers=(halves,)) for n in range(5)]
  assert sum(a != b for a, b in pairs) >= 4


def test_operations_after_mixing_come_without_mixing_too():
  plain = [drawn(0, n, operations=()) for n in range(4)]
  assert plain == [(0, 47)] * 4  # the image itself
  changed = [drawn(0, n, operations=(), mixed=(Draw(),)) for n in range(4)]
  assert len(set(changed)) > 2
