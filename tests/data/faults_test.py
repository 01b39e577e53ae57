import logging

import pytest
import tensorflow as tf

from nfnets_tf.data.faults import Examiner, Fault, Faults
from nfnets_tf.data.loading import PADDING
from nfnets_tf.data.tfrecords import UNREADABLE, Fields, Record
from tests.support.datasets import SMALL_IMAGE as IMAGE
from tests.support.datasets import serialized_example as example

PNG = tf.io.encode_png(IMAGE).numpy()
JPEG = tf.io.encode_jpeg(IMAGE).numpy()


def examine(serialized, fields=None, **options):
  return Examiner(fields or Fields(), num_classes=3, **options)(serialized)


def record(encoded, label=0):
  return Record(encoded, label, "", "cat.png", "png").serialize()


@pytest.mark.parametrize("encoded", [PNG, JPEG])
def test_a_good_record_has_no_fault(encoded):
  assert examine(record(encoded)) is None


@pytest.mark.parametrize(
  "serialized, cause, detail",
  [
    (UNREADABLE + b"a/b", "not readable in its shard", "a/b"),
    (b"", "without one label", ""),
    (b"\xff\xff", "no tf.train.Example", ""),
    (example(**{"image/encoded": PNG}), "without one label", ""),
    (example(**{"image/class/label": 1}), "without one image", ""),
    (record(PNG, 3), "label out of range", "class 3 of 3"),
    (record(PNG, -1), "label out of range", "class -1 of 3"),
    (record(PNG[:40]), "image not decodable", ""),
    (record(JPEG[:100]), "image not decodable", ""),
    (record(b"text"), "image not decodable", ""),
  ],
)
def test_every_cause(serialized, cause, detail):
  fault = examine(serialized)
  assert fault.cause == cause
  assert not detail or fault.detail == detail
  if b"cat.png" in serialized:
    assert fault.name == "cat.png"


def test_too_large_is_said_before_decoding():
  fault = examine(record(PNG), max_pixels=15)
  assert fault == Fault("image too large", "cat.png", "16 pixels")


def test_raw_images():
  fields = Fields("x", "y", raw=True, height="h", width="w")
  good = {"x": IMAGE.tobytes(), "y": 1, "h": 4, "w": 4}
  assert examine(example(**good), fields) is None
  without = example(x=b"", y=1)
  assert examine(without, fields).cause == "without height and width"
  for change in ({"h": 5}, {"w": -4, "h": -4}, {"x": b"short"}):
    fault = examine(example(**{**good, **change}), fields)
    assert fault.cause == "image not decodable"


def lay_aside(faults, records, begin=0, **options):
  """Gives records to a data set that finds all of them bad."""
  record = faults.recorder(**options)
  positions = tf.range(begin, begin + len(records), dtype=tf.int64)
  bad = tf.data.Dataset.from_tensors((positions, tf.constant(records)))

  def tell(*lost):
    with tf.control_dependencies([record(*lost)]):
      return tf.size(lost[0])

  list(bad.map(tell))


def test_faults_are_counted_and_the_first_are_named(caplog):
  faults = Faults("train", Examiner(Fields(), num_classes=3))
  assert not faults.collect()
  bad = [record(b"text"), PADDING, record(PNG, 7)]
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    for turn in range(3):
      lay_aside(faults, bad, begin=3 * turn)
      assert sum(faults.collect().values()) == 2 * (turn + 1)
  assert faults.collect() == {"image not decodable": 3, "label out of range": 3}
  assert str(faults) == "3 image not decodable, 3 label out of range"
  assert len(caplog.messages) == 5
  assert any("'cat.png' of the 'train' split" in m for m in caplog.messages)
  assert caplog.messages[-1].endswith("Further ones are only counted.")


def test_of_a_pair_the_bad_one_is_counted():
  faults = Faults("train", Examiner(Fields(), num_classes=3), sources=2)
  lay_aside(faults, [[record(PNG), record(b"text")]])
  assert faults.collect() == {"image not decodable": 1}


def test_a_good_record_that_an_operation_refuses():
  faults = Faults("train", Examiner(Fields(), num_classes=3))
  lay_aside(faults, [record(PNG)])
  assert faults.collect() == {"refused by an operation": 1}


def test_more_than_memory_is_kept_for_are_counted_without_a_cause():
  faults = Faults("train", Examiner(Fields(), num_classes=3))
  lay_aside(faults, [b"\xff"] * 1000)
  lay_aside(faults, [b"\xff"] * 1000, begin=1000)
  assert faults.collect() == {"no tf.train.Example": 1024, "not examined": 976}
  lay_aside(faults, [b"\xff"] * 10, begin=2000)
  assert faults.collect() == {"no tf.train.Example": 1034, "not examined": 976}


def test_what_is_bad_in_every_evaluation_is_counted_once(caplog):
  faults = Faults("heldout", Examiner(Fields(), num_classes=3))
  for _ in range(3):
    lay_aside(faults, [b"\xff"] * 2000, repeated=True)
  assert faults.collect() == {"no tf.train.Example": 1024, "not examined": 976}
  lay_aside(faults, [b"\xff"] * 3, begin=1, repeated=True)
  assert sum(faults.collect().values()) == 2000
  assert len(caplog.messages) == 5


def test_what_servers_have_seen_is_not_known():
  faults = Faults("train", Examiner(Fields(), num_classes=3))
  assert str(faults) == "of causes that only data servers have seen"


def test_labels_are_counted_from_the_first_one():
  fields = Fields(first_label=1)
  assert examine(record(PNG, 3), fields) is None
  assert examine(record(PNG, 0), fields).detail == "class -1 of 3"
