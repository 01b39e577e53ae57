import dataclasses
import json
import os
import sys
import threading
import time

import pytest
import tensorflow as tf

from nfnets_tf.data.near_duplicates import difference_hash
from nfnets_tf.data.shard_tasks import (
  Beam,
  InProcess,
  ShardTask,
  plan_tasks,
  write_hashes,
  write_task,
)
from nfnets_tf.data.tfrecords import Fields, Record
from nfnets_tf.data.validation import RecordValidator
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import file_sha256, read_json
from tests.support.datasets import SmoothImages, names_in, smooth_image

VALIDATE = RecordValidator(Fields(), 3)


def plan(source, directory, examples_per_shard=5, seed=0):
  return plan_tasks(
    source,
    str(directory),
    examples_per_shard=examples_per_shard,
    seed=seed,
  )


def test_deals_every_image_to_one_of_equal_shards(tmp_path):
  source = SmoothImages()
  tasks = plan(source, tmp_path)
  assert len(tasks["train"]) == 5 and len(tasks["heldout"]) == 1
  sizes = [len(task.references) for task in tasks["train"]]
  assert max(sizes) - min(sizes) <= 1
  references = sorted(r for task in tasks["train"] for r in task.references)
  assert references == sorted(source.splits["train"])
  assert plan(source, tmp_path) == tasks
  assert plan(source, tmp_path, seed=1) != tasks
  in_order = source.splits["train"][::5]
  assert tasks["train"][0].references != in_order
  assert plan(source, tmp_path, seed=None)["train"][0].references == in_order


def test_splits_are_permuted_independently(tmp_path):
  class Both(SmoothImages):
    @property
    def splits(self):
      return {"train": list(range(20)), "heldout": list(range(20))}

  tasks = plan(Both(), tmp_path, examples_per_shard=20)
  assert tasks["train"][0].references != tasks["heldout"][0].references


def test_valid_images_are_written_and_others_are_counted(tmp_path):
  tasks = plan(SmoothImages(), tmp_path)["train"]
  entries = []
  for task in tasks:
    assert task.read_entry() is None and not task.is_written(None)
    write_task(task, SmoothImages(), VALIDATE)
    entries.append(task.read_entry())
    assert task.is_written(entries[-1])
    assert entries[-1]["sha256"] == file_sha256(task.path)
  names = [name for task in tasks for name in names_in(task.path)]
  valid = [i for i in range(1, 23) if i not in (13, 17)]
  assert sorted(names) == sorted(f"{i}.jpg" for i in valid)
  invalid = [item for entry in entries for item in entry["faults"].items()]
  assert sorted(invalid) == [("image not decodable", 1), ("not readable", 1)]
  named = " ".join(name for entry in entries for name in entry["named"])
  assert "17.jpg: image not decodable" in named and "cannot be read" in named
  assert not any("partial" in name for name in os.listdir(tmp_path))


def test_labels_out_of_range_are_counted(tmp_path):
  class Unlabeled(SmoothImages):
    def read(self, reference):
      return dataclasses.replace(super().read(reference), label=-1)

  (task,) = plan(Unlabeled(), tmp_path)["heldout"]
  write_task(task, Unlabeled(), VALIDATE)
  entry = task.read_entry()
  assert entry["faults"] == {"label out of range": 1}
  assert entry["named"] == ["0.jpg: label out of range (class -1 of 3)"]


def test_truncated_or_lost_shard_counts_as_not_written(tmp_path):
  (task,) = plan(SmoothImages(), tmp_path)["heldout"]
  write_task(task, SmoothImages(), VALIDATE)
  os.truncate(task.path, 10)
  assert not task.is_written(task.read_entry())
  os.remove(task.path)
  assert not task.is_written(task.read_entry())


def test_near_duplicates_are_skipped_and_named(tmp_path):
  hashes = {"hashes": [difference_hash(smooth_image(5, 32))]}
  (tmp_path / "hashes.json").write_text(json.dumps(hashes))
  files = (str(tmp_path / "hashes.json"),)
  for task in plan(SmoothImages(), tmp_path)["train"]:
    write_task(task, SmoothImages(), VALIDATE, files, distance=3)
    holds_it = (5, 2) in task.references
    assert task.read_entry()["duplicates"] == ["5.jpg"] * holds_it
    assert "5.jpg" not in names_in(task.path)


def test_hashes_valid_images_regardless_of_labels(tmp_path):
  task = ShardTask(str(tmp_path / "a.json"), [(12, 0), (13, 0), (17, 0)])
  write_hashes(task, SmoothImages(), RecordValidator(Fields(), None))
  expected = difference_hash(smooth_image(12, 32))
  (number,) = read_json(task.path)["hashes"]
  assert bin(number ^ expected).count("1") <= 3  # 13 is lost, 17 truncated

  class Unlabeled(SmoothImages):
    def read(self, reference):
      encoded = tf.io.encode_jpeg(smooth_image(1, 32)).numpy()
      return Record(encoded, -1, "", "", "")

  unlabeled = ShardTask(str(tmp_path / "b.json"), [(1, 0)])
  write_hashes(unlabeled, Unlabeled(), RecordValidator(Fields(), None))
  assert len(read_json(unlabeled.path)["hashes"]) == 1
  files = (task.path, unlabeled.path)
  task = ShardTask(str(tmp_path / "shard"), [(1, 1), (2, 2), (12, 0)])
  write_task(task, SmoothImages(), VALIDATE, files, 3)
  assert names_in(task.path) == ["2.jpg"]


def test_error_in_a_thread_cancels_pending_tasks():
  started, release = [], threading.Event()

  def work(task):
    started.append(task)
    if task == 0:
      release.set()
      raise KeyError("broken")
    release.wait()
    time.sleep(0.001)  # or all are done before the error is seen

  with pytest.raises(KeyError, match="broken"):
    InProcess()(work, range(10_000))
  assert len(started) < 10_000


def test_rejects_runners_unknown_to_beam(monkeypatch):
  Beam(runner="DirectRunner", options=["--direct_num_workers=2"])
  with pytest.raises(UserError, match="runner = 'Dataflow' with .* is invalid"):
    Beam(runner="Dataflow")
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(UserError, match=r"pip install 'nfnets_tf\[prepare\]'"):
    Beam(runner="DirectRunner")
