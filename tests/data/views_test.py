import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocess
from nfnets_tf.data.records import Fields, Record
from nfnets_tf.data.views import Views

IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def views(**options):
  operations = [preprocess.Resize(image_size=4)]
  return Views(operations, (), (), **{"num_classes": 3, **options})


def example(**features):
  kinds = {int: "int64_list", bytes: "bytes_list"}
  lists = {int: tf.train.Int64List, bytes: tf.train.BytesList}
  features = {
    name: tf.train.Feature(**{kinds[type(v)]: lists[type(v)](value=[v])})
    for name, v in features.items()
  }
  features = tf.train.Features(feature=features)
  return tf.train.Example(features=features).SerializeToString()


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
