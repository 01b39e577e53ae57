import os

import numpy as np
import tensorflow as tf

from nfnets_tf.data import checking
from nfnets_tf.data.tfrecords import Fields, Record
from nfnets_tf.data.validation import RecordValidator
from nfnets_tf.fileio import file_sha256


def png(value, size=16):
  image = np.full([size, size, 3], value, np.uint8)
  return tf.io.encode_png(image).numpy()


def shard(path, *records):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for name, (encoded, label) in enumerate(records):
      record = Record(encoded, label, "", f"{name}.png", "png")
      writer.write(record.serialize())
  return str(path)


def checker(**options):
  examine = RecordValidator(Fields(), num_classes=3)
  return checking.Checker(examine, **{"min_side": 8, **options})


def test_a_sound_shard(tmp_path):
  path = shard(tmp_path / "a", (png(1), 0), (png(2), 2))
  found = checker()(path, 2, file_sha256(path))
  assert [(place, name) for place, _, name in found.images] == [
    (0, "0.png"),
    (1, "1.png"),
  ]
  checking.mark_duplicates(found, {})
  assert found == checking.ShardFindings(path, records=2)


def test_every_record_is_judged(tmp_path):
  path = shard(
    tmp_path / "a",
    (png(1), 0),
    (png(1), 1),
    (png(2)[:30], 0),
    (png(3), 3),
    (png(4, size=7), 0),
    (tf.io.encode_png(np.zeros([7, 99, 3], np.uint8)).numpy(), 0),
  )
  found = checker()(path)
  checking.mark_duplicates(found, {})
  assert found.records == 6
  assert found.counts == {
    checking.DUPLICATE: 1,
    "image not decodable": 1,
    "label out of range": 1,
    checking.TINY: 2,
  }
  places = {place: fault for place, fault in found.named}
  assert places[1].detail == "of a@0" and places[1].name == "1.png"
  assert places[4].detail == "7 x 7 pixels"


def test_duplicates_are_found_across_shards(tmp_path):
  check = checker()
  first = shard(tmp_path / "a", (png(1), 0))
  second = shard(tmp_path / "b", (png(2), 0), (png(1), 0))
  found, seen = [check(second), check(first)], {}
  for one in reversed(found):  # whichever was read first
    checking.mark_duplicates(one, seen)
  assert [one.counts for one in found] == [{checking.DUPLICATE: 1}, {}]
  assert found[0].named[0][0] == 1


def test_what_follows_a_cut_is_lost_and_what_comes_before_is_judged(tmp_path):
  path = shard(tmp_path / "a", *((png(i), 0) for i in range(5)))
  os.truncate(path, os.path.getsize(path) * 3 // 4)
  found = checker()(path, expected=5)
  assert found.records == 3 and found.counts == {checking.CUT: 1}
  ((place, fault),) = found.named
  assert place == 3 and "truncated record" in fault.detail
  assert "{{" not in fault.detail and "Op:" not in fault.detail


def test_a_shard_with_other_records_than_the_index_says(tmp_path):
  path = shard(tmp_path / "a", (png(1), 0))
  found = checker()(path, expected=2)
  assert found.named[0][1].detail == "1 records, 2 expected"
  assert checker()(path, expected=0).counts == {checking.CUT: 1}


def test_a_shard_of_other_bytes_than_the_index_says(tmp_path):
  path = shard(tmp_path / "a", (png(1), 0))
  found = checker()(path, 1, "0" * 64)
  assert found.counts == {checking.CHANGED: 1} and found.records == 1


def test_a_lost_shard_is_a_fault(tmp_path):
  found = checker()(str(tmp_path / "none"))
  assert found.records == 0 and found.counts == {checking.CUT: 1}


def test_raw_images(tmp_path):
  from tests.support.datasets import SMALL_IMAGE as IMAGE
  from tests.support.datasets import serialized_example as example

  path = str(tmp_path / "raw")
  with tf.io.TFRecordWriter(path) as writer:
    writer.write(example(x=IMAGE.tobytes(), y=0, h=4, w=4))
  fields = Fields("x", "y", raw=True, height="h", width="w")
  check = checking.Checker(RecordValidator(fields, 1), min_side=5)
  assert check(path).counts == {checking.TINY: 1}
