import json
import os

import pytest
import tensorflow as tf

from nfnets_tf.data import records
from nfnets_tf.ops.errors import UserError


def remove_index(directory):
  os.remove(os.path.join(directory, records.INDEX))


def test_records_have_the_field_names_of_imagenets_shards():
  record = records.Record(b"bytes", 3, "cat", "cat.png", "png")
  features = tf.train.Example.FromString(record.serialize()).features.feature
  assert features["image/class/label"].int64_list.value == [3]
  assert features["image/encoded"].bytes_list.value == [b"bytes"]
  assert features["image/class/text"].bytes_list.value == [b"cat"]
  assert features["image/filename"].bytes_list.value == [b"cat.png"]
  assert features["image/format"].bytes_list.value == [b"png"]


def test_index_counts_what_the_shards_hold(make_dataset):
  index = records.read_index(make_dataset(train=50, train_shards=4), "train")
  assert index.counts == (13, 13, 12, 12)
  assert index.num_examples == 50 and index.num_classes == 4
  assert index.class_names == ("a", "b", "c", "d")
  for path, count in zip(index.files, index.counts):
    assert sum(1 for _ in tf.data.TFRecordDataset(path)) == count


def test_shards_without_an_index_are_scanned(make_dataset):
  directory = make_dataset()
  indexed = records.read_index(directory, "train")
  remove_index(directory)
  scanned = records.read_index(directory, "train")
  assert (scanned.files, scanned.counts) == (indexed.files, indexed.counts)
  assert scanned.num_classes == 4 and scanned.class_names == ()


def test_a_folder_is_never_overwritten(make_dataset):
  directory = make_dataset()
  with pytest.raises(UserError, match="is not overwritten"):
    records.write_dataset(directory, {}, num_shards={}, class_names=[])


def test_an_interrupted_writing_leaves_no_folder(tmp_path):
  class Interrupted(list):
    def __getitem__(self, part):
      raise KeyboardInterrupt

  directory = str(tmp_path / "data")
  with pytest.raises(KeyboardInterrupt):
    records.write_dataset(
      directory,
      {"train": Interrupted()},
      num_shards={"train": 1},
      class_names=["a"],
    )
  assert os.listdir(tmp_path) == []  # nor half a one


def test_labels_without_a_name_are_refused(tmp_path):
  bad = records.Record(b"", 2, "", "x.png", "png")
  with pytest.raises(UserError, match="'x.png' has label 2; expected 0 to 1"):
    records.write_dataset(
      str(tmp_path / "data"),
      {"train": [bad]},
      num_shards={"train": 1},
      class_names=["a", "b"],
    )
  assert os.listdir(tmp_path) == []


def test_missing_and_empty_folders_are_told_apart(tmp_path, make_dataset):
  with pytest.raises(UserError, match="does not exist; bind DATA_DIR"):
    records.read_index(str(tmp_path / "nowhere"), "train")
  with pytest.raises(UserError, match=r"no train-\* shards \(it is empty\)"):
    records.read_index(str(tmp_path), "train")
  with pytest.raises(UserError, match="no split 'valid'.*'train', 'heldout'"):
    records.read_index(make_dataset(), "valid")
  with pytest.raises(UserError, match="holds no examples"):
    records.read_index(make_dataset(heldout=0, name="none"), "heldout")


def test_lost_and_cut_shards_are_named(make_dataset):
  directory = make_dataset()
  shard = records.read_index(directory, "train").files[1]
  size = os.path.getsize(shard)
  os.truncate(shard, size - 7)
  with pytest.raises(UserError, match=f"train-00001.* has {size - 7:,} bytes"):
    records.read_index(directory, "train")
  remove_index(directory)
  with pytest.raises(UserError, match="train-00001.* is not a whole TFRecord"):
    records.read_index(directory, "train")
  os.remove(shard)


def test_a_missing_shard_of_the_index_is_named(make_dataset):
  directory = make_dataset()
  os.remove(records.read_index(directory, "train").files[2])
  with pytest.raises(UserError, match="train-00002.* is missing"):
    records.read_index(directory, "train")


@pytest.mark.parametrize("label", [None, -5])
def test_a_shard_without_labels_is_named(make_dataset, label):
  directory = make_dataset(train=3, train_shards=1)
  shard = records.read_index(directory, "train").files[0]
  remove_index(directory)
  features = {}
  if label is not None:
    values = tf.train.Int64List(value=[label])
    features[records.LABEL] = tf.train.Feature(int64_list=values)
  example = tf.train.Example(features=tf.train.Features(feature=features))
  with tf.io.TFRecordWriter(shard) as writer:
    writer.write(records.Record(b"", 0, "", "", "").serialize())
    writer.write(example.SerializeToString())
  with pytest.raises(UserError, match="record 1 of the shard .*has no label"):
    records.read_index(directory, "train")


def test_the_index_is_plain_json(make_dataset):
  with open(os.path.join(make_dataset(), records.INDEX)) as file:
    index = json.load(file)
  assert index["format"] == 1 and set(index["splits"]) == {"train", "heldout"}


def test_file_names_come_in_the_order_of_the_records(make_dataset):
  index = records.read_index(make_dataset(train=7, train_shards=2), "train")
  names = records.read_filenames(index)
  assert names == [f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5)]
