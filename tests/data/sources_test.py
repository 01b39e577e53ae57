import numpy as np
import tensorflow as tf
from sklearn import datasets

from nfnets_tf.data.records import IMAGE, LABEL, read_index
from nfnets_tf.data.sources import Digits


def read(directory, split):
  """Returns {file name: (label, 8x8 means of the image)}."""
  found = {}
  for path in read_index(directory, split).files:
    for serialized in tf.data.TFRecordDataset(path):
      example = tf.train.Example.FromString(serialized.numpy())
      feature = example.features.feature
      image = tf.io.decode_png(feature[IMAGE].bytes_list.value[0])
      assert image.shape == [16, 16, 1]
      small = image.numpy()[..., 0].reshape(8, 2, 8, 2).mean((1, 3))
      name = feature["image/filename"].bytes_list.value[0].decode()
      found[name] = feature[LABEL].int64_list.value[0], small
  return found


def test_shards_hold_the_digits_once_with_their_labels(tmp_path):
  directory = str(tmp_path / "digits")
  digits = Digits(directory=directory, image_size=16)
  assert digits() is True
  assert digits() is False  # found again
  train, heldout = read(directory, "train"), read(directory, "heldout")
  assert len(train) == 1437 and len(heldout) == 360
  assert not set(train) & set(heldout)
  source = datasets.load_digits()
  for name, (label, small) in {**train, **heldout}.items():
    number = int(name.split("-")[1].split(".")[0])
    assert label == source.target[number]
    alike = np.corrcoef(small.ravel(), source.images[number].ravel())
    assert alike[0, 1] > 0.97  # enlarged, not another image


def test_the_split_is_fixed(tmp_path):
  names = []
  for folder in ("a", "b"):
    directory = str(tmp_path / folder)
    Digits(directory=directory, image_size=8)()
    index = read_index(directory, "heldout")
    names.append([tf.io.gfile.GFile(f, "rb").read() for f in index.files])
  assert names[0] == names[1]
