import csv
import json
import os

import pytest

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.tfrecords import Record, write_shard
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.check_shards import CheckShardsJob
from nfnets_tf.jobs.job import RunContext


def make(directory, **options):
  return CheckShardsJob(
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
  return job.run(RunContext(str(workdir), "# none\n"))


def forget_sums(directory):
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


def test_a_sound_set_is_usable(make_dataset, tmp_path):
  job = make(make_dataset(), splits=["train"])
  assert "splits  train" in job.plan()
  summary = run(job, tmp_path / "work")
  assert "50 of 50 records" in summary and "none" in summary
  table = rows(tmp_path / "work")
  assert len(table) == 5 and sum(int(r["records"]) for r in table) == 50


def test_held_out_images_that_are_trained_on_are_told(make_dataset, tmp_path):
  # Its held-out images are the first thirteen of training.
  summary = run(make(make_dataset()), tmp_path / "work")
  assert "63 of 63 records" in summary and "13 duplicate image" in summary
  table = rows(tmp_path / "work")
  assert [int(r["duplicate image"]) for r in table] == [0] * 5 + [7, 6]


def test_tiny_images_and_duplicates_are_told_but_usable(make_dataset, tmp_path):
  summary = run(make(make_dataset(), min_side=9), tmp_path / "work")
  assert "63 tiny image" in summary and "63 of 63" in summary


def test_a_cut_shard_makes_the_set_unusable(make_dataset, tmp_path):
  directory = make_dataset()
  shard = read_split_info(directory, "train").files[1]
  os.truncate(shard, os.path.getsize(shard) - 5)
  with pytest.raises(UserError, match="1 shard cut off or corrupt; restore"):
    run(make(directory), tmp_path / "work")
  bad = [r for r in rows(tmp_path / "work") if "cut off" in r["first"]]
  assert [r["shard"] for r in bad] == [os.path.basename(shard)]
  assert bad[0]["shard cut off or corrupt"] == "1"


def test_the_bound_on_bad_records(make_dataset, tmp_path):
  directory = make_dataset()
  found = read_split_info(directory, "train")
  records = [Record(b"no image", 0, "", f"{i}", "") for i in range(10)]
  write_shard(found.files[0], [(0, r.serialize()) for r in records])
  changed = "1 shard changed since it was written.* restore the shards"
  with pytest.raises(UserError, match=changed):
    run(make(directory, max_bad_share=0.2), tmp_path / "changed")
  forget_sums(directory)
  with pytest.raises(UserError, match="10 image not dec.* of 63 records"):
    run(make(directory), tmp_path / "a")
  summary = run(make(directory, max_bad_share=0.2), tmp_path / "b")
  assert "53 of 63 records" in summary


def test_labels_are_held_against_the_index(make_dataset, tmp_path):
  directory = make_dataset()
  shard = read_split_info(directory, "train").files[0]
  record = Record(b"", 4, "", "a", "")
  write_shard(shard, [(4, record.serialize())] * 10)
  forget_sums(directory)
  with pytest.raises(UserError, match="10 label out of range"):
    run(make(directory), tmp_path / "work")


def test_labels_are_held_against_a_number_of_classes(make_dataset, tmp_path):
  with pytest.raises(UserError, match="label out of range"):
    run(make(make_dataset(), num_classes=2), tmp_path / "work")
