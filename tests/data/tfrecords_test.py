import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.tfrecords import (
  UNREADABLE,
  FeatureValues,
  Fields,
  Record,
  parse_image_and_label,
  read_features,
  read_filename,
  read_records,
  read_segment,
  record_spans,
  shard_name,
  write_shard,
)
from tests.support.datasets import serialized_example

RECORD = Record(b"bytes", 3, "cat", "cat.png", "png")


def test_records_have_the_field_names_of_imagenets_shards():
  features = tf.train.Example.FromString(RECORD.serialize()).features.feature
  assert features["image/class/label"].int64_list.value == [3]
  assert features["image/encoded"].bytes_list.value == [b"bytes"]
  assert features["image/class/text"].bytes_list.value == [b"cat"]
  assert features["image/filename"].bytes_list.value == [b"cat.png"]
  assert features["image/format"].bytes_list.value == [b"png"]


def test_parsers_return_the_written_values():
  serialized = tf.constant(RECORD.serialize())
  image, label = parse_image_and_label(serialized, Fields(first_label=1))
  assert image.numpy() == b"bytes" and label.numpy() == 2
  for example, name in ((RECORD.serialize(), "cat.png"), (UNREADABLE, "")):
    assert read_filename(example, Fields()) == name
  values = read_features(RECORD.serialize(), Fields(first_label=1))
  assert values == FeatureValues((b"bytes",), (2,), "cat.png")


def test_raw_pixels_are_parsed_with_their_size():
  pixels = np.arange(48, dtype=np.uint8).reshape(2, 8, 3)
  serialized = serialized_example(x=pixels.tobytes(), y=1, h=2, w=8)
  fields = Fields("x", "y", raw=True, height="h", width="w")
  image, label = parse_image_and_label(tf.constant(serialized), fields)
  np.testing.assert_array_equal(image, pixels)
  assert label.numpy() == 1
  assert read_features(serialized, fields)[2:] == ("", (2,), (8,))


def test_reads_any_number_of_feature_values():
  assert read_features(serialized_example(x=1), Fields()) == FeatureValues(
    (), (), ""
  )
  twice = tf.train.Example.FromString(RECORD.serialize())
  twice.features.feature["image/class/label"].int64_list.value.append(7)
  name = twice.features.feature["image/filename"].bytes_list.value
  name[0] = b"caf\xe9.png"
  values = read_features(twice.SerializeToString(), Fields())
  assert values.labels == (3, 7) and values.filename == "caf\ufffd.png"
  with pytest.raises(ValueError, match="not a tf.train.Example"):
    read_features(b"\xff\xff", Fields())


def test_record_spans_locate_the_bytes_of_records(tmp_path):
  path, parts = str(tmp_path / "a"), [b"one", b"", b"three" * 100]
  with tf.io.TFRecordWriter(path) as writer:
    for part in parts:
      writer.write(part)
  content = (tmp_path / "a").read_bytes()
  spans = list(record_spans(path))
  assert [content[begin : begin + size] for begin, size in spans] == parts


def test_writes_shards_atomically(tmp_path):
  def interrupted():
    yield 0, b"first"
    raise KeyboardInterrupt

  path = str(tmp_path / shard_name("train", 0, 1))
  with pytest.raises(KeyboardInterrupt):
    write_shard(path, interrupted())
  assert os.listdir(tmp_path) == []
  entry = write_shard(path, [(1, b"x"), (0, b"y"), (1, b"z")])
  with pytest.raises(KeyboardInterrupt):  # leaves the previous shard alone
    write_shard(path, interrupted())
  assert os.path.getsize(path) == entry["bytes"]
  assert entry["labels"] == {1: 2, 0: 1} and entry["examples"] == 3
  assert os.listdir(tmp_path) == [entry["file"]] == [os.path.basename(path)]


def test_unreadable_records_keep_their_positions(make_dataset):
  path = read_split_info(make_dataset(train=50), "train").files[0]
  records = list(read_records(path).as_numpy_iterator())
  os.truncate(path, os.path.getsize(path) // 2)
  segment = list(read_segment(path, 1, 9).as_numpy_iterator())
  assert segment == records[1:5] + [UNREADABLE + path.encode()] * 5


def test_damage_at_the_beginning_loses_only_that_shard(make_dataset):
  path = read_split_info(make_dataset(train=50), "train").files[0]
  with open(path, "r+b") as file:
    file.seek(20)
    file.write(b"damage")
  segment = list(read_segment(path, 0, 10).as_numpy_iterator())
  assert segment == [UNREADABLE + path.encode()] * 10
