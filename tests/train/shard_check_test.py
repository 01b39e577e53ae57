import csv
import os

import pytest

from nfnets_tf.data.index import read_index
from nfnets_tf.data.records import Record, write_shard
from nfnets_tf.ops.errors import UserError
from nfnets_tf.train.shard_check import ShardCheck


def make(directory, **options):
  return ShardCheck(
    **{
      "directory": directory,
      "splits": ["train", "heldout"],
      "fields": None,
      "num_classes": None,
      "min_side": 8,
      "max_bad_share": 0.05,
      **options,
    }
  )


def run(job, workdir):
  return job.run(str(workdir), configuration="# none\n", terminal=None)


def rows(workdir):
  with open(workdir / "report" / "shards.csv") as file:
    return list(csv.DictReader(file))


def test_a_sound_set_is_usable(make_dataset, tmp_path):
  job = make(make_dataset())
  assert "train, heldout" in job.plan()
  summary = run(job, tmp_path / "work")
  assert "63 of 63 records" in summary and "none" in summary
  table = rows(tmp_path / "work")
  assert len(table) == 7 and sum(int(r["records"]) for r in table) == 63


def test_tiny_images_and_duplicates_are_told_but_usable(make_dataset, tmp_path):
  summary = run(make(make_dataset(), min_side=9), tmp_path / "work")
  assert "63 tiny image" in summary and "63 of 63" in summary


def test_a_cut_shard_makes_the_set_unusable(make_dataset, tmp_path):
  directory = make_dataset()
  shard = read_index(directory, "train").files[1]
  os.truncate(shard, os.path.getsize(shard) - 5)
  with pytest.raises(UserError, match="1 shard cut off or corrupt, of 62"):
    run(make(directory), tmp_path / "work")
  bad = [r for r in rows(tmp_path / "work") if "record" in r["first"]]
  assert [r["shard"] for r in bad] == [os.path.basename(shard)]
  assert bad[0]["shard cut off or corrupt"] == "1"


def test_the_bound_on_bad_records(make_dataset, tmp_path):
  directory = make_dataset()
  found = read_index(directory, "train")
  records = [Record(b"no image", 0, "", f"{i}", "") for i in range(10)]
  write_shard(found.files[0], [(0, r.serialize()) for r in records])
  with pytest.raises(UserError, match="10 image not decodable, of 63 records"):
    run(make(directory), tmp_path / "a")
  summary = run(make(directory, max_bad_share=0.2), tmp_path / "b")
  assert "53 of 63 records" in summary


def test_labels_are_held_against_a_number_of_classes(make_dataset, tmp_path):
  with pytest.raises(UserError, match="label out of range"):
    run(make(make_dataset(), num_classes=2), tmp_path / "work")
