import os

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets

from nfnets_tf.data import dataset_info, sources
from nfnets_tf.data.dataset_info import read_filenames, read_split_info
from nfnets_tf.data.listing import list_folder
from nfnets_tf.data.sources import Digits, Folder, shards_of
from nfnets_tf.data.tfrecords import Fields
from nfnets_tf.errors import UserError


def read(directory, split):
  """Returns {file name: (label, 8x8 means of the image)}."""
  found = {}
  for path in read_split_info(directory, split).files:
    for serialized in tf.data.TFRecordDataset(path):
      example = tf.train.Example.FromString(serialized.numpy())
      feature = example.features.feature
      image = tf.io.decode_png(feature[Fields().image].bytes_list.value[0])
      assert image.shape == [16, 16, 1]
      small = image.numpy()[..., 0].reshape(8, 2, 8, 2).mean((1, 3))
      name = feature["image/filename"].bytes_list.value[0].decode()
      found[name] = feature[Fields().label].int64_list.value[0], small
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
    index = read_split_info(directory, "heldout")
    names.append([tf.io.gfile.GFile(f, "rb").read() for f in index.files])
  assert names[0] == names[1]


@pytest.fixture
def folder(tmp_path):
  """Two classes of images whose pixels tell which one they are."""
  list_folder.cache_clear()
  for label, name in enumerate(("cat", "dog")):
    (tmp_path / "images" / name).mkdir(parents=True)
    for i in range(6):
      pixels = np.full([8, 8, 3], 100 * label + i, np.uint8)
      encode = tf.io.encode_png if i % 2 else tf.io.encode_jpeg
      path = tmp_path / "images" / name / f"{i}.{'png' if i % 2 else 'JPG'}"
      path.write_bytes(encode(pixels).numpy())
  return str(tmp_path / "images")


def shards(folder, tmp_path, share=0.34):
  return shards_of(
    directory=folder, heldout_share=share, cache=str(tmp_path / "cache")
  )


def test_a_folder_becomes_shards_once(folder, tmp_path):
  directory = shards(folder, tmp_path)
  source = Folder(directory=folder, heldout_share=0.34, shards=directory)
  assert source() is True
  assert source() is False
  found = {}
  for split, count in (("train", 8), ("heldout", 4)):
    index = read_split_info(directory, split)
    assert index.num_examples == count
    assert index.class_names == ("cat", "dog")
    for name in read_filenames(index):
      with open(f"{folder}/{name}", "rb") as file:
        found[name] = file.read()
    for path in index.files:
      for serialized in tf.data.TFRecordDataset(path):
        features = tf.train.Example.FromString(serialized.numpy()).features
        feature = features.feature
        name = feature["image/filename"].bytes_list.value[0].decode()
        encoded = feature[Fields().image].bytes_list.value[0]
        assert found[name] == encoded  # byte for byte
        label = feature[Fields().label].int64_list.value[0]
        assert name.startswith(("cat/", "dog/")[label])
        kind = feature["image/format"].bytes_list.value[0]
        assert kind == (b"png" if name.endswith("png") else b"jpeg")
  assert len(found) == 12


def test_shards_are_called_after_what_is_in_the_folder(folder, tmp_path):
  first = shards(folder, tmp_path)
  assert first.startswith(str(tmp_path / "cache" / "images-"))
  assert shards(folder, tmp_path) == first
  assert shards(folder, tmp_path, share=0.5) != first
  list_folder.cache_clear()
  with open(f"{folder}/cat/1.png", "ab") as file:
    file.write(b"more")
  longer = shards(folder, tmp_path)
  assert longer != first
  list_folder.cache_clear()
  os.utime(f"{folder}/cat/1.png", ns=(0, 1))  # another image of that size
  assert shards(folder, tmp_path) not in (first, longer)


@pytest.mark.parametrize(
  "module, name", [(sources, "_check_images"), (dataset_info, "_write_split")]
)
def test_of_two_that_write_the_same_shards_one_does(
  folder, tmp_path, monkeypatch, module, name
):
  where = shards(folder, tmp_path)

  def source():
    return Folder(directory=folder, heldout_share=0.34, shards=where)()

  usual = getattr(module, name)

  def later(*arguments):
    monkeypatch.setattr(module, name, usual)
    if not os.path.exists(where):
      assert source()  # the other one, from the beginning to the end
    return usual(*arguments)

  monkeypatch.setattr(module, name, later)
  assert not source()
  assert os.listdir(os.path.dirname(where)) == [os.path.basename(where)]


def test_images_that_cannot_be_decoded_are_named(folder, tmp_path):
  for name in ("cat/0.JPG", "dog/5.png"):
    with open(f"{folder}/{name}", "wb") as file:
      file.write(b"\xff\xd8 torn")
  directory = shards(folder, tmp_path)
  source = Folder(directory=folder, heldout_share=0.34, shards=directory)
  with pytest.raises(UserError, match="2 of the 12 images .*cannot") as error:
    source()
  assert "cat/0.JPG" in str(error.value) and "dog/5.png" in str(error.value)
  assert not (tmp_path / "cache").exists()
