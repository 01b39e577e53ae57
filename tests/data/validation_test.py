import logging

import pytest
import tensorflow as tf

from nfnets_tf.data.tfrecords import UNREADABLE, Fields, Record
from nfnets_tf.data.validation import (
  PADDING,
  InvalidRecord,
  InvalidRecords,
  RecordValidator,
)
from tests.support.datasets import SMALL_IMAGE as IMAGE
from tests.support.datasets import serialized_example

PNG = tf.io.encode_png(IMAGE).numpy()
JPEG = tf.io.encode_jpeg(IMAGE).numpy()


def validate(serialized, fields=None, **options):
  validator = RecordValidator(fields or Fields(), num_classes=3, **options)
  return validator(serialized)


def record(encoded, label=0):
  return Record(encoded, label, "", "cat.png", "png").serialize()


@pytest.mark.parametrize("encoded", [PNG, JPEG])
def test_accepts_valid_records(encoded):
  assert validate(record(encoded)) is None


@pytest.mark.parametrize(
  "serialized, cause, detail",
  [
    (UNREADABLE + b"a/b", "unreadable in its shard", "a/b"),
    (b"", "not exactly one label", ""),
    (b"\xff\xff", "not a tf.train.Example", ""),
    (
      serialized_example(**{"image/encoded": PNG}),
      "not exactly one label",
      "",
    ),
    (
      serialized_example(**{"image/class/label": 1}),
      "not exactly one image",
      "",
    ),
    (record(PNG, 3), "label out of range", "class 3 of 3"),
    (record(PNG, -1), "label out of range", "class -1 of 3"),
    (record(PNG[:40]), "image not decodable", ""),
    (record(JPEG[:100]), "image not decodable", ""),
    (record(b"text"), "image not decodable", ""),
  ],
)
def test_states_the_cause(serialized, cause, detail):
  invalid = validate(serialized)
  assert invalid.cause == cause
  assert not detail or invalid.detail == detail
  if b"cat.png" in serialized:
    assert invalid.name == "cat.png"


def test_does_not_decode_too_large_images():
  invalid = validate(record(PNG[:30]), max_pixels=15)
  assert invalid == InvalidRecord("image too large", "cat.png", "16 pixels")


def test_validates_raw_images():
  fields = Fields("x", "y", raw=True, height="h", width="w")
  valid = {"x": IMAGE.tobytes(), "y": 1, "h": 4, "w": 4}
  assert validate(serialized_example(**valid), fields) is None
  without_size = serialized_example(x=b"", y=1)
  assert validate(without_size, fields).cause == "no height and width"
  for change in ({"h": 5}, {"w": -4, "h": -4}, {"x": b"short"}):
    invalid = validate(serialized_example(**{**valid, **change}), fields)
    assert invalid.cause == "image not decodable"


def test_counts_labels_from_the_first_label():
  fields = Fields(first_label=1)
  assert validate(record(PNG, 3), fields) is None
  assert validate(record(PNG, 0), fields).detail == "class -1 of 3"


def invalid_records(split="train", **options):
  return InvalidRecords(
    split, RecordValidator(Fields(), num_classes=3), **options
  )


def set_aside(invalid, records, begin=0, **options):
  """Reports records from inside a dataset, at consecutive positions."""
  report = invalid.recorder(**options)
  positions = tf.range(begin, begin + len(records), dtype=tf.int64)
  dataset = tf.data.Dataset.from_tensors((positions, tf.constant(records)))

  def report_all(positions, records):
    with tf.control_dependencies([report(positions, records)]):
      return tf.size(positions)

  list(dataset.map(report_all))


def test_counts_by_cause_and_logs_the_first_five(caplog):
  invalid = invalid_records()
  assert not invalid.collect()
  records = [record(b"text"), PADDING, record(PNG, 7)]
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    for turn in range(3):
      set_aside(invalid, records, begin=3 * turn)
      assert sum(invalid.collect().values()) == 2 * (turn + 1)
  assert invalid.collect() == {
    "image not decodable": 3,
    "label out of range": 3,
  }
  assert str(invalid) == "3 image not decodable, 3 label out of range"
  assert len(caplog.messages) == 5
  assert any("'cat.png' of the 'train' split" in m for m in caplog.messages)
  assert caplog.messages[-1].endswith("Further ones are only counted.")


def test_counts_the_invalid_record_of_a_mixed_pair():
  invalid = invalid_records(records_per_image=2)
  set_aside(invalid, [[record(PNG), record(b"text")]])
  assert invalid.collect() == {"image not decodable": 1}


def test_blames_a_transform_for_rejected_valid_records():
  invalid = invalid_records()
  set_aside(invalid, [record(PNG)])
  assert invalid.collect() == {"rejected by a transform": 1}


def test_counts_records_beyond_the_memory_limit_as_not_examined():
  invalid, cause = invalid_records(), "not a tf.train.Example"
  set_aside(invalid, [b"\xff"] * 1000)
  set_aside(invalid, [b"\xff"] * 1000, begin=1000)
  assert invalid.collect() == {cause: 1024, "not examined": 976}
  set_aside(invalid, [b"\xff"] * 10, begin=2000)
  assert invalid.collect() == {cause: 1034, "not examined": 976}


def test_counts_a_record_once_over_repeated_evaluations(caplog):
  invalid = invalid_records("heldout")
  for _ in range(3):
    set_aside(invalid, [b"\xff"] * 2000, repeated=True)
  expected = {"not a tf.train.Example": 1024, "not examined": 976}
  assert invalid.collect() == expected
  set_aside(invalid, [b"\xff"] * 3, begin=1, repeated=True)
  assert sum(invalid.collect().values()) == 2000
  assert len(caplog.messages) == 5


def test_states_unknown_causes_of_data_servers():
  assert "data servers" in str(invalid_records())
