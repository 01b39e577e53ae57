import os

import pytest
import tensorflow as tf

from nfnets_tf.data import index, records, scanning
from nfnets_tf.errors import UserError
from tests.support.datasets import remove_index


def test_shards_without_an_index_are_scanned(make_dataset):
  directory = make_dataset()
  indexed = index.read_index(directory, "train")
  remove_index(directory)
  scanned = index.read_index(directory, "train")
  assert (scanned.files, scanned.counts) == (indexed.files, indexed.counts)
  assert scanned.num_classes == 4 and scanned.class_names == ()


def test_shards_are_counted_once_and_anew_when_they_change(
  make_dataset, monkeypatch
):
  directory = make_dataset(train=4, train_shards=2)
  remove_index(directory)
  first = index.read_index(directory, "train")
  with monkeypatch.context() as patch:
    patch.setattr(scanning, "_labels", None)
    assert index.read_index(directory, "train") == first
  record = records.Record(b"", 6, "", "", "")
  records.write_shard(first.files[0], [(6, record.serialize())])
  changed = index.read_index(directory, "train")
  assert changed.counts == (1, 2) and changed.num_classes == 7


def test_model_garden_shards_count_classes_from_1(make_dataset):
  directory = make_dataset(train=8, train_shards=1)
  remove_index(directory)
  shifted = records.Fields(first_label=1)
  with pytest.raises(UserError, match="no label of 1 or more"):
    index.read_index(directory, "train", shifted)
  path = os.path.join(directory, "train-00000-of-00001.tfrecord")
  shards = [records.Record(b"", label, "", "", "") for label in (1, 4)]
  records.write_shard(path, [(0, record.serialize()) for record in shards])
  found = index.read_index(directory, "train", shifted)
  assert found.num_classes == 4 and found.fields == shifted


@pytest.mark.parametrize("label", [None, -5])
def test_a_shard_without_labels_is_named(make_dataset, label):
  directory = make_dataset(train=3, train_shards=1)
  shard = index.read_index(directory, "train").files[0]
  remove_index(directory)
  features = {}
  if label is not None:
    values = tf.train.Int64List(value=[label])
    features[records.Fields().label] = tf.train.Feature(int64_list=values)
  example = tf.train.Example(features=tf.train.Features(feature=features))
  with tf.io.TFRecordWriter(shard) as writer:
    writer.write(records.Record(b"", 0, "", "", "").serialize())
    writer.write(example.SerializeToString())
  with pytest.raises(UserError, match="record 1 of the shard .*has no label"):
    index.read_index(directory, "train")


def test_other_fields_and_times_are_counted_anew(make_dataset):
  directory = make_dataset(train=4, train_shards=1)
  remove_index(directory)
  first = scanning.scan(directory, "train", records.Fields())
  (path,), counts, classes = first
  assert counts == (4,) and classes == 4
  other = records.Fields(label="image/filename")
  with pytest.raises(tf.errors.InvalidArgumentError):
    scanning.scan(directory, "train", other)  # kept for the other label
  with open(path, "rb") as file:
    content = file.read()
  changed = records.Record(b"", 0, "", "", "").serialize()
  records.write_shard(path, [(0, changed)] * 2)
  with open(path, "ab") as file:
    file.truncate(len(content))  # as large as before
  os.utime(path, (1, 1))  # TensorFlow sees whole seconds
  with pytest.raises(UserError, match="corrupted record at 282.; restore"):
    scanning.scan(directory, "train", records.Fields())


def test_brackets_in_a_folders_name(make_dataset):
  directory = make_dataset(train=4, train_shards=1, name="set [2024]")
  remove_index(directory)
  assert scanning.scan(directory, "train", records.Fields())[1] == (4,)


def test_what_cannot_be_kept_is_counted_all_the_same(
  make_dataset, monkeypatch, caplog
):
  directory = make_dataset(train=4, train_shards=1)
  remove_index(directory)
  monkeypatch.setenv("HOME", "/proc/nowhere")
  assert scanning.scan(directory, "train", records.Fields())[1] == (4,)
  assert "cannot be kept" in caplog.text
