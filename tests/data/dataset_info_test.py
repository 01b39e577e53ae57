import hashlib
import json
import os

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets_tf.data import tfrecords
from nfnets_tf.data.dataset_info import (
  INDEX,
  SplitInfo,
  count_classes,
  count_examples,
  describe_split,
  evaluation_steps,
  read_filenames,
  read_split_info,
  write_index,
)
from nfnets_tf.data.tfrecords import Fields, Record, write_shard
from nfnets_tf.errors import UserError
from tests.support.datasets import remove_index, store_with_tfds


def write_labels(path, *labels):
  """Writes a shard of empty images."""
  records = [Record(b"", label, "", "", "") for label in labels]
  return write_shard(path, [(0, record.serialize()) for record in records])


def test_split_info_counts_the_examples(make_dataset):
  info = read_split_info(make_dataset(train=50, train_shards=4), "train")
  assert info.counts == (13, 13, 12, 12)
  assert info.num_examples == 50 and info.num_classes == 4
  assert info.class_names == ("a", "b", "c", "d")
  for path, count in zip(info.files, info.counts):
    assert sum(1 for _ in tf.data.TFRecordDataset(path)) == count


def test_index_states_sizes_checksums_and_classes(make_dataset):
  directory = make_dataset(train=50, train_shards=4)
  with open(os.path.join(directory, INDEX)) as file:
    index = json.load(file)
  assert index["format"] == 2 and set(index["splits"]) == {"train", "heldout"}
  split = index["splits"]["train"]
  assert split["examples"] == 50
  assert split["examples_by_class"] == [13, 13, 12, 12]
  for shard in split["shards"]:
    with open(os.path.join(directory, shard["file"]), "rb") as file:
      content = file.read()
    assert shard["bytes"] == len(content)
    assert shard["sha256"] == hashlib.sha256(content).hexdigest()
  assert sum(shard["bytes"] for shard in split["shards"]) == split["bytes"]


def test_histogram_sums_the_labels_of_shards(tmp_path):
  entry = write_shard(str(tmp_path / "a"), [(1, b"x"), (0, b"y"), (1, b"z")])
  assert describe_split([entry, entry], 3)["examples_by_class"] == [2, 4, 0]


def test_writes_an_index_atomically(tmp_path):
  for content in ({"splits": {}}, {"splits": {"train": 1}}):
    write_index(str(tmp_path), content)
    with open(tmp_path / INDEX) as file:
      assert json.load(file) == content
  assert os.listdir(tmp_path) == [INDEX]


@pytest.mark.parametrize(
  "counts, batch_size, expected",
  [((13,), 13, 1), ((7, 6), 12, 2), ((7, 6), 14, 1), ((12, 12), 8, 3)],
)
def test_evaluation_steps_cover_the_split(counts, batch_size, expected):
  info = SplitInfo(("x",) * len(counts), counts, 4, ())
  assert evaluation_steps(info, batch_size) == expected


def test_rejects_missing_and_empty_directories_and_splits(
  tmp_path, make_dataset
):
  with pytest.raises(UserError, match="does not exist; bind DATA_DIR"):
    read_split_info(str(tmp_path / "nowhere"), "train")
  with pytest.raises(UserError, match=r"no train-\* shards \(it is empty\)"):
    read_split_info(str(tmp_path), "train")
  with pytest.raises(UserError, match="no split 'valid'.*'train', 'heldout'"):
    read_split_info(make_dataset(), "valid")
  with pytest.raises(UserError, match="holds no examples"):
    read_split_info(make_dataset(heldout=0, name="none"), "heldout")


def test_names_missing_and_truncated_shards(make_dataset):
  directory = make_dataset()
  files = read_split_info(directory, "train").files
  size = os.path.getsize(files[1])
  os.truncate(files[1], size - 7)
  with pytest.raises(UserError, match=f"train-00001.* has {size - 7:,} bytes"):
    read_split_info(directory, "train")
  os.rename(files[1], f"{directory}/elsewhere")
  with pytest.raises(UserError, match="train-00001.* is missing"):
    read_split_info(directory, "train")
  os.rename(f"{directory}/elsewhere", files[1])
  remove_index(directory)
  with pytest.raises(UserError, match="train-00001.* is not a whole TFRecord"):
    read_split_info(directory, "train")


def test_reads_file_names_in_the_order_of_records(make_dataset):
  info = read_split_info(make_dataset(train=7, train_shards=2), "train")
  assert read_filenames(info) == [f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5)]
  name = Record(b"", 0, "", "x", "").serialize().replace(b"\x01x", b"\x01\xe9")
  write_shard(info.files[0], [(0, name), (0, b"no example")])  # two are lost
  names = ["\ufffd", "", "", "", "1.png", "3.png", "5.png"]
  assert read_filenames(info) == names


def test_rejects_invalid_index_files(make_dataset):
  directory = make_dataset()
  path = os.path.join(directory, INDEX)
  for text, message in (
    ('{"splits": {', "not a JSON file"),
    ('{"splits": {}}', "lacks class_names; expected the index"),
  ):
    with open(path, "w") as file:
      file.write(text)
    with pytest.raises(UserError, match=message):
      read_split_info(directory, "train")


def test_counts_classes_and_examples(make_dataset):
  given = {"directory": make_dataset(train=7), "split": "train"}
  assert count_classes(**given) == 4
  assert count_examples(**given) == 7
  with pytest.raises(UserError, match="DATA_DIR is not given; bind it"):
    count_examples(directory=None, split="train")


def test_reads_tfds_datasets_directly(tmp_path):
  directory = store_with_tfds(tmp_path)
  info = read_split_info(directory, "train")
  assert info.num_examples == 6 and info.class_names == ("cat", "dog")
  assert info.fields.image == "picture" and info.fields.label == "kind"
  assert set(read_filenames(info)) == {f"{i}.png" for i in range(6)}
  with pytest.raises(
    UserError, match="no split 'test'; its index lists 'train'"
  ):
    read_split_info(directory, "test")


def test_fields_choose_one_of_several_tfds_labels(tmp_path):
  kind = tfds.features.ClassLabel(names=["x", "y", "z"])
  directory = store_with_tfds(tmp_path, other=kind)
  with pytest.raises(UserError, match=r"labels \['kind', 'other'\]; expected"):
    read_split_info(directory, "train")
  fields = Fields("picture", "other")
  info = read_split_info(directory, "train", fields)
  assert info.class_names == ("x", "y", "z") and info.fields == fields


def test_scans_shards_without_an_index(make_dataset):
  directory = make_dataset(name="set [2024]")  # no pattern
  indexed = read_split_info(directory, "train")
  remove_index(directory)
  scanned = read_split_info(directory, "train")
  assert (scanned.files, scanned.counts) == (indexed.files, indexed.counts)
  assert scanned.num_classes == 4 and scanned.class_names == ()


def test_caches_a_scan_until_a_shard_changes(make_dataset, caplog):
  directory = make_dataset(train=4, train_shards=2)
  remove_index(directory)
  with caplog.at_level("INFO"):
    scanned = read_split_info(directory, "train")
    assert read_split_info(directory, "train") == scanned
  assert caplog.text.count("Counting") == 1
  write_labels(scanned.files[0], 6)
  changed = read_split_info(directory, "train")
  assert changed.counts == (1, 2) and changed.num_classes == 7


def test_rescans_after_a_change_of_the_same_size(make_dataset):
  directory = make_dataset(train=4, train_shards=1)
  remove_index(directory)
  (path,) = read_split_info(directory, "train").files
  size = os.path.getsize(path)
  write_labels(path, 0, 0)
  with open(path, "ab") as file:
    file.truncate(size)
  os.utime(path, (1, 1))  # TensorFlow sees whole seconds
  with pytest.raises(UserError, match="corrupted record at 282.; restore"):
    read_split_info(directory, "train")


def test_rescans_for_other_fields(make_dataset):
  directory = make_dataset(train=4, train_shards=1)
  remove_index(directory)
  assert read_split_info(directory, "train").counts == (4,)
  other = Fields(label="image/filename")
  with pytest.raises(UserError, match="no label from 0 on in 'image/filename'"):
    read_split_info(directory, "train", other)


def test_model_garden_shards_count_classes_from_1(make_dataset):
  directory = make_dataset(train=8, train_shards=1)
  remove_index(directory)
  shifted = Fields(first_label=1)
  with pytest.raises(UserError, match="no label from 1 on .* .it holds 0."):
    read_split_info(directory, "train", shifted)
  write_labels(os.path.join(directory, "train-00000-of-00001.tfrecord"), 1, 4)
  info = read_split_info(directory, "train", shifted)
  assert info.num_classes == 4 and info.fields == shifted


@pytest.mark.parametrize("label", [None, -5])
def test_scan_names_a_record_without_a_label(make_dataset, label):
  directory = make_dataset(train=3, train_shards=1)
  shard = read_split_info(directory, "train").files[0]
  remove_index(directory)
  example = tf.train.Example.FromString(Record(b"", 0, "", "", "").serialize())
  feature = example.features.feature[tfrecords.Fields().label]
  if label is None:
    feature.Clear()
  else:
    feature.int64_list.value[0] = label
  valid = Record(b"", 0, "", "", "").serialize()
  write_shard(
    shard, [(0, valid), (0, example.SerializeToString(deterministic=True))]
  )
  with pytest.raises(UserError, match="record 1 of the shard .*has no label"):
    read_split_info(directory, "train")


def test_scan_works_without_a_cache(make_dataset, monkeypatch, caplog):
  directory = make_dataset(train=4, train_shards=1)
  remove_index(directory)
  monkeypatch.setenv("HOME", "/proc/nowhere")
  assert read_split_info(directory, "train").counts == (4,)
  assert "not cached" in caplog.text
