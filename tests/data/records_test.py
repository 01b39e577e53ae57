import hashlib
import json
import os

import pytest
import tensorflow as tf

from nfnets_tf.data import records
from nfnets_tf.errors import UserError


def test_records_have_the_field_names_of_imagenets_shards():
  record = records.Record(b"bytes", 3, "cat", "cat.png", "png")
  features = tf.train.Example.FromString(record.serialize()).features.feature
  assert features["image/class/label"].int64_list.value == [3]
  assert features["image/encoded"].bytes_list.value == [b"bytes"]
  assert features["image/class/text"].bytes_list.value == [b"cat"]
  assert features["image/filename"].bytes_list.value == [b"cat.png"]
  assert features["image/format"].bytes_list.value == [b"png"]


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
  records.check_label("x.png", 1, 2)
  with pytest.raises(UserError, match="'x.png' has label -1; expected 0 to 1"):
    records.check_label("x.png", -1, 2)
  with pytest.raises(UserError, match="'x.png' has label 2; expected 0 to 1"):
    records.write_dataset(
      str(tmp_path / "data"),
      {"train": [bad]},
      num_shards={"train": 1},
      class_names=["a", "b"],
    )
  assert os.listdir(tmp_path) == []


def test_the_index_counts_sizes_sums_and_classes(make_dataset):
  directory = make_dataset(train=50, train_shards=4)
  with open(os.path.join(directory, records.INDEX)) as file:
    index = json.load(file)
  assert index["format"] == 2 and set(index["splits"]) == {"train", "heldout"}
  split = index["splits"]["train"]
  assert split["examples"] == 50 and split["examples_by_class"] == [
    13,
    13,
    12,
    12,
  ]
  for shard in split["shards"]:
    with open(os.path.join(directory, shard["file"]), "rb") as file:
      content = file.read()
    assert shard["bytes"] == len(content)
    assert shard["sha256"] == hashlib.sha256(content).hexdigest()
  assert sum(shard["bytes"] for shard in split["shards"]) == split["bytes"]


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
  def broken():
    yield 0, b"first"
    raise KeyboardInterrupt

  path = str(tmp_path / records.shard_name("train", 0, 1))
  with pytest.raises(KeyboardInterrupt):
    records.write_shard(path, broken())
  assert os.listdir(tmp_path) == []
  entry = records.write_shard(path, [(1, b"x"), (0, b"y"), (1, b"z")])
  with pytest.raises(KeyboardInterrupt):  # and leaves the one before it
    records.write_shard(path, broken())
  assert os.path.getsize(path) == entry["bytes"]
  assert entry["labels"] == {1: 2, 0: 1} and entry["examples"] == 3
  assert os.path.basename(path) == entry["file"] in os.listdir(tmp_path)
  described = records.describe_split([entry, entry], 3)
  assert described["examples_by_class"] == [2, 4, 0]


def test_an_index_replaces_another_as_a_whole(tmp_path):
  for content in ({"splits": {}}, {"splits": {"train": 1}}):
    records.write_index(str(tmp_path), content)
    with open(tmp_path / records.INDEX) as file:
      assert json.load(file) == content
  assert os.listdir(tmp_path) == [records.INDEX]
