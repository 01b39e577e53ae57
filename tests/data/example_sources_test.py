import os
import pickle

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets

from nfnets_tf.data.example_sources import (
  CsvTable,
  Digits,
  TfdsDataset,
  cache_directory,
  count_classes,
  count_examples,
)
from nfnets_tf.data.image_folder import ImageFolder
from nfnets_tf.errors import UserError
from tests.support.datasets import store_with_tfds


@pytest.fixture
def read_table(tmp_path):
  """Reads a table of some lines, of images that need not exist."""

  def read(*lines, fraction=0.1):
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    path, directory = str(tmp_path / "a.csv"), str(tmp_path)
    return CsvTable(path=path, directory=directory, heldout_fraction=fraction)

  return read


def test_reads_class_numbers_and_splits_of_a_table(read_table):
  table = read_table("label,split,path", "0,Train,a", "03,val,b")
  assert table.class_names == ("0", "1", "2", "3")
  assert table.splits == {"train": [("a", 0)], "heldout": [("b", 3)]}
  assert table.split_rule == "the column split"


def test_class_numbers_that_begin_at_1_are_noticed(read_table, caplog):
  read_table("path,label", "a,0", "b,1")
  assert not caplog.text
  table = read_table("path,label", "a,1", "b,2", "c,3")
  assert table.class_names == ("0", "1", "2", "3")
  assert "1 of the 4 classes" in caplog.text and "from 1" in caplog.text


def test_rows_for_tests_are_left_alone_where_others_validate(
  read_table, caplog
):
  table = read_table(
    "path,label,split", "a,x,train", "b,y,train", "c,x,dev", "d,z,Test"
  )
  assert table.splits == {"train": [("a", 0), ("b", 1)], "heldout": [("c", 0)]}
  assert table.class_names == ("x", "y")
  assert "1 neither training nor held-out images, such as 'd'" in caplog.text


def test_splits_a_table_by_the_paths(read_table):
  images = [(f"{i}.png", "cba"[i % 3]) for i in range(300)]
  lines = list(map(",".join, images))
  table = read_table("path,label", *lines, fraction=0.2)
  assert table.class_names == ("a", "b", "c") and "0.2" in table.split_rule
  labels = {p: label for part in table.splits.values() for p, label in part}
  assert labels == {p: "abc".index(name) for p, name in images}
  assert 40 <= len(table.splits["heldout"]) <= 80
  # An image stays in its split when others are added.
  more = read_table("path,label", "new,a", *lines, fraction=0.2)
  assert set(table.splits["heldout"]) <= set(more.splits["heldout"])


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_splits_of_two_images_hold_one(read_table, fraction):
  splits = read_table("path,label", "x,a", "y,b", fraction=fraction).splits
  assert [len(splits[name]) for name in ("train", "heldout")] == [1, 1]


def test_reads_tables_of_spreadsheets(tmp_path):
  text = 'path,label\r\n"x","grün, ² hell"\r\n\r\ny,"a\nb"\r\n'
  path = tmp_path / "b.csv"
  options = {"directory": str(tmp_path), "heldout_fraction": 0.5}
  path.write_bytes(b"\xef\xbb\xbf" + text.encode())
  table = CsvTable(path=str(path), **options)
  assert table.class_names == ("a\nb", "grün, ² hell")
  path.write_bytes("path,label\nx,gr\xfcn\n".encode("latin-1"))
  assert CsvTable(path=str(path), **options).class_names == ("gr\ufffdn",)


def test_accepts_class_names_that_look_like_digits(read_table):
  assert read_table("path,label", "x,²").class_names == ("²",)
  table = read_table("path,label", "x,1.5", "y,dog")
  assert table.class_names == ("1.5", "dog")


@pytest.mark.parametrize(
  "lines, message",
  [
    (["file,label", "a,b"], r"no images below .* \['file', 'label'\]; exp"),
    (["path;label", "a;b"], "separated by commas"),
    (["path,label"], "no images below"),
    ([], "no images below"),
    (["path,label", "a,"], r"line 2 of .* is \['a', ''\]"),
    (["path,label", "", "", "a,"], "line 4 of"),
    (["path,label", "a"], "line 2 of .* expected a path and a label"),
    (["path,label", "a,b,c"], "line 2 of"),
    (["path,label", "a,0", "b,-1"], "holds '-1', which is not a class number"),
    (
      ["path,label", "a,0", "b,1.0"],
      "holds '1.0', which is not a class number",
    ),
    (["path,label", "a,20261121"], "goes up to 20,261,121"),
    (["path,label", "a,0", "a,1"], "line 3 of .* gives 'a' another label"),
    (["path,label,split", "a,0,train", "a,0,val"], "another label or split"),
    (["path,label,split", "a,0,train", "b,0,"], "holds '', 'train'; expected"),
    (["path,label,split", "a,0,val", "b,0,test"], "holds 'test', 'val'"),
    (["path,label,split", "a,0,my/split"], "holds 'my/split'; expected train"),
  ],
)
def test_rejects_invalid_tables(read_table, lines, message):
  with pytest.raises(UserError, match=message):
    read_table(*lines)


def test_rejects_missing_files_and_invalid_fractions(tmp_path, read_table):
  for path in (tmp_path / "none.csv", tmp_path):
    with pytest.raises(UserError, match="does not exist; bind CSV to a file"):
      CsvTable(path=str(path), directory=str(tmp_path), heldout_fraction=0.1)
  with pytest.raises(UserError, match="none' does not exist; bind DATA_DIR"):
    CsvTable(path="x", directory=str(tmp_path / "none"), heldout_fraction=0.1)
  with pytest.raises(UserError, match="heldout_fraction = 7 is invalid"):
    read_table("path,label", "x,a", fraction=7)


def test_key_of_a_table_changes_with_lines_and_images(read_table, tmp_path):
  lines = ["path,label", *(f"{i}.png,a" for i in range(20))]
  for i in range(20):
    (tmp_path / f"{i}.png").write_bytes(b"image")
  table = read_table(*lines)
  assert read_table(*lines).key == table.key
  assert read_table(*lines, fraction=0.5).key != table.key
  assert read_table(*lines[:-1], "19.png,b").key != table.key
  record = table.read(("3.png", 0))
  assert record.encoded == b"image" and record.text == "a"
  (tmp_path / "3.png").write_bytes(b"another image")
  assert read_table(*lines).key != table.key
  (tmp_path / "3.png").unlink()  # reported when it is read
  assert read_table(*lines).splits == table.splits


def test_counts_and_cache_directory_of_a_source(read_table, tmp_path):
  table = read_table("path,label,split", "a,x,train", "b,y,train", "c,x,val")
  assert count_classes(source=table) == 2
  assert count_examples(source=table, split="train") == 2
  directory = cache_directory(source=table, cache=str(tmp_path / "cache"))
  name = f"{tmp_path.name}-{table.key[:12]}"
  assert directory == str(tmp_path / "cache" / name)


def test_cache_directory_of_a_folder_with_the_longest_name_can_be_made(
  tmp_path,
):
  folder = tmp_path / ("x" + "ü" * 127)  # 255 bytes
  for name in ("a/1", "a/2", "b/1", "b/2"):
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
  source = ImageFolder(directory=str(folder), heldout_fraction=0.5)
  directory = cache_directory(source=source, cache=str(tmp_path / "cache"))
  os.makedirs(directory)
  assert directory.endswith(f"ü-{source.key[:12]}")


def test_reads_records_of_a_tfds_dataset(tmp_path):
  source = TfdsDataset(directory=store_with_tfds(tmp_path))
  assert source.class_names == ("cat", "dog")
  assert source.split_rule == "TFDS tiny/1.0.0"
  worker = pickle.loads(pickle.dumps(source))
  assert not worker.splits
  names = set()
  for reference in source.splits["train"]:
    record = worker.read(reference)
    names.add(record.filename)
    number = int(record.filename.split(".")[0])
    assert record.label == number % 2
    assert record.text == ("cat", "dog")[record.label]
    assert (tf.io.decode_png(record.encoded) == number).numpy().all()
  assert names == {f"{i}.png" for i in range(6)}


def test_rejects_missing_tfds_dataset(tmp_path):
  with pytest.raises(UserError, match="not prepared a dataset .* bind TFDS to"):
    TfdsDataset(directory=str(tmp_path))


def test_enlarges_and_splits_digits_in_a_fixed_order():
  source = Digits(image_size=16)
  train, heldout = source.splits["train"], source.splits["heldout"]
  assert len(train) == 1437 and len(heldout) == 360
  assert len({record.filename for record in (*train, *heldout)}) == 1797
  assert Digits(image_size=16).splits["heldout"] == heldout
  expected = datasets.load_digits()
  for record in heldout:
    image = tf.io.decode_png(source.read(record).encoded)
    assert image.shape == [16, 16, 1] and record.format == "png"
    number = int(record.filename.split("-")[1].split(".")[0])
    assert record.label == expected.target[number] == int(record.text)
    small = image.numpy()[..., 0].reshape(8, 2, 8, 2).mean((1, 3))
    alike = np.corrcoef(small.ravel(), expected.images[number].ravel())
    assert alike[0, 1] > 0.97  # enlarged, not another image
