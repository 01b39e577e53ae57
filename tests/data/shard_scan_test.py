"""Shards without an index: their names, and what their records hold."""

import os

import pytest
import tensorflow as tf

from nfnets_tf.data.dataset_info import count_classes, read_split_info
from nfnets_tf.data.shard_scan import find_shards, scan_shards
from nfnets_tf.data.tfrecords import Fields
from nfnets_tf.errors import UserError
from tests.support.datasets import (
  make_split,
  remove_index,
  serialized_example,
  store_with_tfds,
)


def touch(folder, *names):
  folder.mkdir(exist_ok=True)
  for name in names:
    (folder / name).touch()
  return str(folder)


def numbered(count, start="train-", end="", total=None):
  total = total or count
  return [f"{start}{i:05d}-of-{total:05d}{end}" for i in range(count)]


def found(folder, split="train"):
  return [os.path.basename(path) for path in find_shards(str(folder), split)]


@pytest.mark.parametrize(
  "names",
  [
    numbered(4),
    numbered(3, end=".tfrecord"),
    numbered(2, start="train.tfrecord-"),
    numbered(2, start="train_", end=".TFRecords"),
    ["train-1-of-3", "train-2-of-3", "train-3-of-3"],  # counted from 1
    ["train_00_of_02.tfrec", "train_01_of_02.tfrec"],
    ["train.tfrecord"],
    ["train_0.tfrecord", "train_1.tfrecord"],
    ["train-00000", "train-00001"],
    ["train-first", "train-second"],
  ],
)
def test_finds_shards_however_they_are_named(tmp_path, names):
  touch(tmp_path, *names, "validation-00000-of-00002", "training.txt")
  assert found(tmp_path) == names


@pytest.mark.parametrize(
  "missing, named", [([2], "00002"), ([0, 1], "00000"), ([3], "00003")]
)
@pytest.mark.parametrize("end", ["", ".tfrecord"])
def test_rejects_missing_shards(tmp_path, missing, named, end):
  names = numbered(4, end=end)
  kept = [name for i, name in enumerate(names) if i not in missing]
  touch(tmp_path, *kept)
  message = f"{len(missing)} of the 4 .*'train-{named}-of-00004{end}'; restore"
  with pytest.raises(UserError, match=message):
    found(tmp_path)


@pytest.mark.parametrize("end", [".gz", ".partial", " (1)", "~", ".bak"])
def test_copies_and_parts_are_no_shards(tmp_path, caplog, end):
  names = numbered(2)
  touch(tmp_path, *names, f"{names[1]}{end}", "train-labels.txt")
  assert found(tmp_path) == names
  assert "Ignored 2 files" in caplog.text and names[1] + end in caplog.text
  (tmp_path / names[1]).unlink()
  with pytest.raises(UserError, match="1 of the 2 .* missing.* .there is 'tra"):
    found(tmp_path)


@pytest.mark.parametrize(
  "other",
  [
    numbered(8),
    numbered(4, end=".tfrecord"),
    numbered(4, start="train-v2-"),
    ["train-extra.tfrecord"],
    ["train-1-of-00004"],  # the same shard twice
  ],
)
def test_rejects_mixed_sets(tmp_path, other):
  touch(tmp_path, *numbered(4), *other)
  with pytest.raises(UserError, match="several sets of 'train' shards, such"):
    found(tmp_path)


def test_rejects_a_shard_too_many_and_none(tmp_path):
  touch(tmp_path, *numbered(3, total=2))
  with pytest.raises(UserError, match="00002-of-00002' .* one shard too many"):
    found(tmp_path)
  touch(tmp_path / "b", "train-00000-of-00001.gz", "train.json")
  with pytest.raises(UserError, match="no train-.* holds .*gz.*not compressed"):
    found(tmp_path / "b")


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_advises_another_name_of_the_held_out_split(tmp_path, name):
  # More training shards than a message names.
  touch(tmp_path, *numbered(9), *numbered(2, start=f"{name}-"))
  with pytest.raises(UserError, match=f"heldout/pipeline.*split = '{name}'"):
    find_shards(str(tmp_path), "heldout")


@pytest.mark.parametrize("kind", ["GZIP", "ZLIB"])
def test_compressed_shards_are_called_so(tmp_path, kind):
  path = str(tmp_path / "train-00000-of-00001")
  with tf.io.TFRecordWriter(path, kind) as writer:
    writer.write(serialized_example(label=0))
  with pytest.raises(UserError, match="is compressed; write"):
    read_split_info(str(tmp_path), "train")


def test_notices_other_records_of_the_same_size_and_time(tmp_path):
  path, found = tmp_path / "train-00000-of-00001", []
  for labels in ((0, 1), (1, 0)):
    with tf.io.TFRecordWriter(str(path)) as writer:
      for label in labels:
        features = {"image/encoded": b"x", "image/class/label": label}
        writer.write(serialized_example(**features))
    os.utime(path, (1e9, 1e9))
    scan = scan_shards(str(tmp_path), "train", Fields())
    found.append((path.stat().st_size, scan.hashes))
  (size, hashes), (other_size, other_hashes) = found
  assert size == other_size
  assert hashes != other_hashes


def test_gaps_in_plain_numbers_are_told(tmp_path, caplog):
  touch(tmp_path, "train-0", "train-1", "train-3")
  assert len(found(tmp_path)) == 3
  assert "skip 1, such as 2" in caplog.text


def test_rejects_incomplete_held_out_shards_and_empty_files(make_dataset):
  directory = make_dataset(train=8, heldout=8)
  remove_index(directory)
  os.remove(f"{directory}/heldout-00001-of-00002.tfrecord")
  assert read_split_info(directory, "train").num_examples == 8
  with pytest.raises(UserError, match="1 of the 2 .*'heldout' split"):
    read_split_info(directory, "heldout")
  open(f"{directory}/heldout-00001-of-00002.tfrecord", "w").close()
  with pytest.raises(UserError, match="heldout-00001.* is empty .0 bytes"):
    read_split_info(directory, "heldout")


def test_shards_beside_those_of_the_index_are_told(make_dataset, caplog):
  directory = make_dataset(train=8, train_shards=2)
  touch_path = os.path.join(directory, "train-00002-of-00004.tfrecord")
  open(touch_path, "w").close()
  assert read_split_info(directory, "train").num_examples == 8
  assert "1 shards in" in caplog.text and "does not list" in caplog.text


def test_missing_and_empty_shards_of_tfds_are_named(tmp_path):
  directory = store_with_tfds(tmp_path)
  (path,) = read_split_info(directory, "train").files
  os.truncate(path, 0)
  with pytest.raises(UserError, match="is empty, but dataset_info.json lists"):
    read_split_info(directory, "train")
  os.remove(path)
  with pytest.raises(UserError, match="is missing, but dataset_info.json li"):
    read_split_info(directory, "train")


def write(folder, *examples):
  folder.mkdir(exist_ok=True)
  path = str(folder / "train-00000-of-00001")
  with tf.io.TFRecordWriter(path) as writer:
    for example in examples:
      writer.write(example)
  return str(folder)


def labeled(*labels):
  return [
    serialized_example(**{"image/encoded": b"x", "image/class/label": label})
    for label in labels
  ]


def counted(directory, fields=None):
  options = {"num_classes": None, "fields": fields}
  return count_classes(split=make_split(directory, **options))


def test_labels_that_begin_at_1_are_noticed(tmp_path, caplog):
  directory = write(tmp_path / "a", *labeled(1, 3, 2, 1))
  assert counted(directory) == 4
  for words in ("has label 0", "1 to 3", "tfrecords.Fields.first_label = 1"):
    assert words in caplog.text
  caplog.clear()
  assert counted(directory, Fields(first_label=1)) == 3 and not caplog.text
  with pytest.raises(
    UserError, match="NUM_CLASSES = 3.*Fields.first_label = 1"
  ):
    make_split(directory, num_classes=3).read_info()


def test_classes_without_examples_are_told(tmp_path, caplog):
  assert counted(write(tmp_path / "a", *labeled(0, 1, 5))) == 6
  assert "3 of the 6 classes" in caplog.text and "2, 3, 4" in caplog.text
  caplog.clear()
  assert counted(write(tmp_path / "b", *labeled(0, 1, 2))) == 3
  assert not caplog.text


@pytest.mark.parametrize(
  "label, message",
  [
    (-1, "it holds -1"),
    (b"cat", "it holds bytes, such as b'cat'"),
    (b"\x02\x00\x00\x00", r"it holds bytes, such as b'\\x02"),
    (20261125, "go up to 20,261,125"),
  ],
)
def test_rejects_what_is_no_class_number(tmp_path, label, message):
  directory = write(tmp_path / "a", *labeled(0, label))
  with pytest.raises(UserError, match=message):
    scan_shards(directory, "train", Fields())


def test_rejects_several_labels_and_none(tmp_path):
  example = tf.train.Example.FromString(labeled(1)[0])
  feature = example.features.feature["image/class/label"]
  feature.int64_list.value.append(2)
  directory = write(tmp_path / "a", example.SerializeToString())
  with pytest.raises(UserError, match="record 0 .*it holds 2 integers"):
    scan_shards(directory, "train", Fields())
  feature.float_list.value.append(0.5)
  directory = write(tmp_path / "b", example.SerializeToString())
  with pytest.raises(UserError, match="it holds float, such as 0.5"):
    scan_shards(directory, "train", Fields())


def test_unknown_fields_are_refused_with_those_there_are(tmp_path):
  other = serialized_example(image_raw=b"x", target=1)
  directory = write(tmp_path / "a", other, other)
  with pytest.raises(
    UserError, match=r"image_raw .bytes., target .integer.*tfrecords.Fields.l"
  ):
    counted(directory)
  with pytest.raises(UserError, match="no image in|has an image in 'image/enc"):
    counted(directory, Fields(label="target"))
  fields = Fields(image="image_raw", label="target", first_label=1)
  assert counted(directory, fields) == 1


def test_hashes_follow_the_records_not_the_path_or_time(tmp_path):
  scans = [
    scan_shards(write(tmp_path / name, *labeled(*labels)), "train", Fields())
    for name, labels in (("a", [1, 2]), ("b", [1, 2]), ("c", [2, 1]))
  ]
  assert scans[0].hashes == scans[1].hashes != scans[2].hashes


@pytest.mark.parametrize(
  "field", [{"label": ""}, {"image": None}, {"first_label": "1"}]
)
def test_rejects_invalid_fields(field):
  with pytest.raises(UserError, match=f"tfrecords.Fields.{next(iter(field))}"):
    Fields(**field)
