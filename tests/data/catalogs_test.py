import csv
import pickle

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import catalogs
from nfnets_tf.data.sources import read_image
from nfnets_tf.errors import UserError
from tests.support.datasets import store_with_tfds


@pytest.fixture
def photos(tmp_path):
  """A folder of 20 images of two classes."""
  for label in ("cat", "dog"):
    (tmp_path / "photos" / label).mkdir(parents=True)
    for i in range(10):
      image = np.full([9, 9, 3], i, np.uint8)
      encoded = tf.io.encode_png(image).numpy()
      (tmp_path / "photos" / label / f"{i}.png").write_bytes(encoded)
  return tmp_path / "photos"


def write_csv(path, rows):
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows(rows)
  return str(path)


def from_csv(path, directory, share=0.25):
  return catalogs.CsvCatalog(
    path=path, directory=str(directory), heldout_share=share
  )


def all_names(catalog):
  return sorted(
    catalog.read(reference).filename
    for part in catalog.splits.values()
    for reference in part
  )


def test_a_folder(photos):
  catalog = catalogs.FolderCatalog(directory=str(photos), heldout_share=0.2)
  assert catalog.class_names == ("cat", "dog")
  assert {k: len(v) for k, v in catalog.splits.items()} == {
    "train": 16,
    "heldout": 4,
  }
  record = catalog.read(catalog.splits["heldout"][0])
  assert record.format == "png" and record.filename.startswith("cat/")
  assert record.encoded == (photos / record.filename).read_bytes()
  assert record == read_image(str(photos), record.filename, 0, "cat")
  # It travels to workers without its list.
  light = pickle.loads(pickle.dumps(catalog))
  assert not light.splits
  assert light.read(catalog.splits["heldout"][0]) == record


def test_a_csv_with_names_and_a_share(photos, tmp_path):
  names = [f"{c}/{i}.png" for c in ("dog", "cat") for i in range(10)]
  rows = [["path", "label"], *([name, name[:3]] for name in names)]
  catalog = from_csv(write_csv(tmp_path / "a.csv", rows), photos)
  assert catalog.class_names == ("cat", "dog")
  assert all_names(catalog) == sorted(names)
  assert set(catalog.splits) == {"train", "heldout"}
  assert 1 <= len(catalog.splits["heldout"]) <= 10
  for reference in catalog.splits["train"]:
    record = catalog.read(reference)
    assert record.text == record.filename[:3]
    assert catalog.class_names[record.label] == record.text
  again = from_csv(str(tmp_path / "a.csv"), photos)
  assert again.key == catalog.key and again.splits == catalog.splits
  other = from_csv(str(tmp_path / "a.csv"), photos, share=0.5)
  assert other.key != catalog.key
  (photos / "cat" / "3.png").write_bytes(b"another image")
  assert from_csv(str(tmp_path / "a.csv"), photos).key != catalog.key
  (photos / "cat" / "3.png").unlink()  # is told when it is read
  assert from_csv(str(tmp_path / "a.csv"), photos).splits == catalog.splits


def test_a_folder_of_images_that_is_not_there(tmp_path):
  path = write_csv(tmp_path / "g.csv", [["path", "label"], ["a", "b"]])
  for make in (
    lambda: from_csv(path, tmp_path / "none"),
    lambda: catalogs.FolderCatalog(
      directory=str(tmp_path / "none"), heldout_share=0.1
    ),
  ):
    with pytest.raises(UserError, match="none' is no folder; bind IMAGES"):
      make()


def test_tfds(tmp_path):
  directory = store_with_tfds(tmp_path)
  catalog = catalogs.TfdsCatalog(directory=directory)
  assert catalog.class_names == ("cat", "dog")
  assert all_names(catalog) == sorted(f"{i}.png" for i in range(6))
  light = pickle.loads(pickle.dumps(catalog))
  for reference in catalog.splits["train"]:
    record = light.read(reference)
    number = int(record.filename.split(".")[0])
    assert record.label == number % 2
    assert (tf.io.decode_png(record.encoded) == number).numpy().all()
  assert catalog.rule == "TFDS tiny/1.0.0"


def test_digits(tmp_path):
  catalog = catalogs.DigitsCatalog(image_size=8)
  assert {k: len(v) for k, v in catalog.splits.items()} == {
    "train": 1437,
    "heldout": 360,
  }
  record = catalog.read(catalog.splits["train"][0])
  assert record.text == catalog.class_names[record.label]


def test_tfds_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match="no data set in .* bind TFDS to"):
    catalogs.TfdsCatalog(directory=str(tmp_path))
