import csv
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.tfrecords import Fields, Record, write_shard
from nfnets_tf.data.validation import RecordValidator
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import file_sha256
from nfnets_tf.jobs.check_shards import (
  CHANGED,
  DUPLICATE,
  TINY,
  TRUNCATED,
  CheckShardsJob,
  ShardReport,
  check_shard,
)
from nfnets_tf.jobs.job import RunContext
from tests.support.datasets import SMALL_IMAGE, serialized_example


def png(value, height=16, width=16):
  image = np.full([height, width, 3], value, np.uint8)
  return tf.io.encode_png(image).numpy()


def write(path, *images):
  """Writes a shard of (encoded, label); returns its path."""
  records = [
    Record(encoded, label, "", f"{i}.png", "png")
    for i, (encoded, label) in enumerate(images)
  ]
  write_shard(str(path), [(x.label, x.serialize()) for x in records])
  return str(path)


def check(path, *expected):
  validate = RecordValidator(Fields(), 3)
  return check_shard(path, *expected, validate=validate, min_side=8)


def test_valid_shard_has_no_problems(tmp_path):
  path = write(tmp_path / "a", (png(1), 0), (png(2), 2))
  report = check(path, 2, file_sha256(path))
  names = [(position, name) for position, _, name in report.images]
  assert names == [(0, "0.png"), (1, "1.png")]
  report.add_duplicates({})
  assert report == ShardReport(path, records=2)


def test_counts_problems_by_cause(tmp_path):
  path = write(
    tmp_path / "a",
    (png(1), 0),
    (png(1), 1),
    (png(2)[:30], 0),
    (png(3), 3),
    (png(4, 7, 7), 0),
    (png(0, 7, 99), 0),
  )
  report = check(path)
  report.add_duplicates({})
  assert report.records == 6
  assert report.counts == {
    DUPLICATE: 1,
    "image not decodable": 1,
    "label out of range": 1,
    TINY: 2,
  }
  assert report.first.startswith("record 2 (2.png): image not decodable")


def test_finds_duplicates_across_shards(tmp_path):
  first = write(tmp_path / "a", (png(1), 0))
  second = write(tmp_path / "b", (png(2), 0), (png(1), 0))
  reports, seen = [check(second), check(first)], {}
  for report in reversed(reports):  # whichever was read first
    report.add_duplicates(seen)
  assert [report.counts for report in reports] == [{DUPLICATE: 1}, {}]
  assert reports[0].first == "record 1 (1.png): duplicate image (of a@0)"


def test_validates_records_before_a_truncation(tmp_path):
  path = write(tmp_path / "a", *((png(i), 0) for i in range(5)))
  os.truncate(path, os.path.getsize(path) * 3 // 4)
  report = check(path, 5)
  assert report.records == 3 and report.counts == {TRUNCATED: 1}
  assert report.first.startswith(f"record 3: {TRUNCATED}")
  assert "truncated record" in report.first
  assert "{{" not in report.first and "Op:" not in report.first


def test_reports_shards_that_differ_from_the_index(tmp_path):
  path = write(tmp_path / "a", (png(1), 0))
  assert "1 records, 2 expected" in check(path, 2).first
  assert check(path, 0).counts == {TRUNCATED: 1}
  report = check(path, 1, "0" * 64)
  assert report.counts == {CHANGED: 1} and report.records == 1
  lost = check(str(tmp_path / "none"))
  assert lost.records == 0 and lost.counts == {TRUNCATED: 1}


def test_checks_raw_images(tmp_path):
  serialized = serialized_example(x=SMALL_IMAGE.tobytes(), y=0, h=4, w=4)
  path = str(tmp_path / "raw")
  write_shard(path, [(0, serialized)])
  fields = Fields("x", "y", raw=True, height="h", width="w")
  report = check_shard(path, validate=RecordValidator(fields, 1), min_side=5)
  assert report.counts == {TINY: 1}
  assert report.first == "record 0: tiny image (4 x 4 pixels)"


def make(directory, **options):
  defaults = {
    "splits": ["train", "heldout"],
    "fields": None,
    "num_classes": None,
    "min_side": 8,
    "max_invalid_fraction": 0.05,
  }
  return CheckShardsJob(directory=directory, **{**defaults, **options})


def run(job, workdir):
  return job.run(RunContext(str(workdir), "# none\n"))


def remove_checksums(directory):
  path = os.path.join(directory, "index.json")
  with open(path) as file:
    index = json.load(file)
  for part in index["splits"].values():
    for shard in part["shards"]:
      del shard["sha256"]
  with open(path, "w") as file:
    json.dump(index, file)


def rows(workdir):
  with open(workdir / "report" / "shards.csv") as file:
    return list(csv.DictReader(file))


def test_accepts_a_valid_dataset(make_dataset, tmp_path):
  job = make(make_dataset(), splits=["train"])
  assert "splits  train" in job.plan()
  summary = run(job, tmp_path / "work")
  assert "50 of 50 records" in summary and "none" in summary
  table = rows(tmp_path / "work")
  assert len(table) == 5 and sum(int(r["records"]) for r in table) == 50


def test_reports_tiny_and_duplicate_images(make_dataset, tmp_path):
  # Its held-out images are the first thirteen of training.
  summary = run(make(make_dataset(), min_side=9), tmp_path / "work")
  assert "63 of 63 records" in summary and "63 tiny image" in summary
  assert "13 duplicate image" in summary
  table = rows(tmp_path / "work")
  assert [int(r[DUPLICATE]) for r in table] == [0] * 5 + [7, 6]


def test_rejects_a_dataset_with_a_truncated_shard(make_dataset, tmp_path):
  directory = make_dataset()
  shard = read_split_info(directory, "train").files[1]
  os.truncate(shard, os.path.getsize(shard) - 5)
  with pytest.raises(UserError, match="1 shard truncated or corrupt; restore"):
    run(make(directory), tmp_path / "work")
  truncated = [r for r in rows(tmp_path / "work") if r[TRUNCATED] == "1"]
  assert [r["shard"] for r in truncated] == [os.path.basename(shard)]
  assert TRUNCATED in truncated[0]["first"]


def test_rejects_more_invalid_records_than_allowed(
  make_dataset, tmp_path, caplog
):
  directory = make_dataset()
  info = read_split_info(directory, "train")
  write(info.files[0], *[(b"no image", 0)] * 10)
  with pytest.raises(UserError, match="1 shard changed since .* restore"):
    run(make(directory, max_invalid_fraction=0.2), tmp_path / "changed")
  remove_checksums(directory)
  with pytest.raises(UserError, match="10 image not dec.* of 63 records"):
    run(make(directory), tmp_path / "a")
  summary = run(make(directory, max_invalid_fraction=0.2), tmp_path / "b")
  assert "53 of 63 records" in summary
  assert "record 0 (0.png): image not decodable" in caplog.text


def test_checks_labels_against_the_index_or_num_classes(make_dataset, tmp_path):
  directory = make_dataset()
  with pytest.raises(UserError, match="label out of range"):
    run(make(directory, num_classes=2), tmp_path / "given")
  write(read_split_info(directory, "train").files[0], *[(png(0), 4)] * 10)
  remove_checksums(directory)
  with pytest.raises(UserError, match="10 label out of range"):
    run(make(directory), tmp_path / "work")
