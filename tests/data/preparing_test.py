import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preparing
from nfnets_tf.data.duplicates import NearDuplicates, difference_hash
from nfnets_tf.data.tfrecords import Record
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import file_sha256
from tests.support.datasets import SmoothImages as Pictures
from tests.support.datasets import names_in
from tests.support.datasets import plan_small_tasks as tasks_of
from tests.support.datasets import smooth_image as picture


def test_every_image_goes_to_one_shard_and_shards_are_equal(tmp_path):
  catalog = Pictures()
  tasks = tasks_of(catalog, tmp_path)
  assert isinstance(tasks["heldout"][0], preparing.ShardTask)
  assert len(tasks["train"]) == 5 and len(tasks["heldout"]) == 1
  sizes = [len(task.references) for task in tasks["train"]]
  assert max(sizes) - min(sizes) <= 1
  everything = sorted(r for task in tasks["train"] for r in task.references)
  assert everything == sorted(catalog.splits["train"])
  assert tasks_of(catalog, tmp_path) == tasks
  assert tasks_of(catalog, tmp_path, seed=1) != tasks
  assert tasks["train"][0].references != catalog.splits["train"][::5]


def test_a_task_writes_what_can_be_used_and_counts_the_rest(tmp_path):
  tasks = tasks_of(Pictures(), tmp_path)["train"]
  assert not any(map(preparing.is_finished, tasks))
  written = []
  for task in tasks:
    preparing.write_task(task, Pictures(), None)
    assert preparing.is_finished(task)
    sidecar = preparing.read_sidecar(task)
    assert sidecar["sha256"] == file_sha256(task.path)
    written.append(sidecar)
  names = [name for task in tasks for name in names_in(task.path)]
  good = [i for i in range(1, 23) if i not in (13, 17)]
  assert sorted(names) == sorted(f"{i}.jpg" for i in good)
  faults = [fault for some in written for fault in some["faults"].items()]
  assert sorted(faults) == [("image not decodable", 1), ("not readable", 1)]
  named = " ".join(name for some in written for name in some["named"])
  assert "17.jpg: image not decodable" in named and "cannot be read" in named


def test_a_half_written_shard_is_none(tmp_path):
  (task,) = tasks_of(Pictures(), tmp_path)["heldout"]
  preparing.write_task(task, Pictures(), None)
  os.truncate(task.path, 10)
  assert not preparing.is_finished(task)
  os.remove(task.path)
  assert not preparing.is_finished(task)
  with open(task.path, "wb"):
    os.remove(task.sidecar)
  assert not preparing.is_finished(task)


def test_near_duplicates_are_left_out_and_named(tmp_path):
  known = NearDuplicates([difference_hash(picture(5, 32))], 3)
  for task in tasks_of(Pictures(), tmp_path)["train"]:
    preparing.write_task(task, Pictures(), known)
    left_out = preparing.read_sidecar(task)["duplicates"]
    holds_it = (5, 2) in task.references
    assert left_out == (["5.jpg"] if holds_it else [])
    assert "5.jpg" not in names_in(task.path)


@pytest.mark.parametrize("without", [None, Pictures(3, first=20, quality=60)])
def test_beam_runs_the_tasks(tmp_path, without):
  tasks = [t for some in tasks_of(Pictures(), tmp_path).values() for t in some]
  preparing.run_tasks(
    Pictures(),
    tasks,
    without=without,
    distance=3,
    runner="DirectRunner",
    options=["--direct_running_mode=multi_threading"],
  )
  assert all(map(preparing.is_finished, tasks))
  names = {name for task in tasks for name in names_in(task.path)}
  there = {f"{i}.jpg" for i in range(23) if i not in (13, 17)}
  assert there - names == (
    set() if without is None else {"20.jpg", "21.jpg", "22.jpg"}
  )


def test_sidecars_are_json(tmp_path):
  (task,) = tasks_of(Pictures(), tmp_path)["heldout"]
  preparing.write_task(task, Pictures(), None)
  with open(task.sidecar) as file:
    assert json.load(file)["labels"] == {"0": 1}
  assert np.all([not name.endswith("partial") for name in os.listdir(tmp_path)])


def test_other_images_that_cannot_be_used_are_passed_over():
  others = Pictures()
  hashes = [
    found
    for seed in (12, 13, 17)
    for found in preparing._hashes((seed, 0), others)
  ]
  assert len(hashes) == 1  # 13 is not there, 17 is cut off
  unlabelled = Pictures(class_names=[""])
  unlabelled.read = lambda _: Record(
    tf.io.encode_jpeg(picture(1, 32)).numpy(), -1, "", "", ""
  )
  assert len(list(preparing._hashes(None, unlabelled))) == 1


def test_splits_are_permuted_each_for_itself(tmp_path):
  class Both(Pictures):
    @property
    def splits(self):
      return {"train": list(range(20)), "heldout": list(range(20))}

  tasks = tasks_of(Both(), tmp_path, examples_per_shard=20)
  assert tasks["train"][0].references != tasks["heldout"][0].references


def test_labels_out_of_range_are_counted(tmp_path):
  class Unlabelled(Pictures):
    def read(self, reference):
      return dataclasses.replace(super().read(reference), label=-1)

  (task,) = tasks_of(Unlabelled(), tmp_path)["heldout"]
  preparing.write_task(task, Unlabelled(), None)
  found = preparing.read_sidecar(task)
  assert found["faults"] == {"label out of range": 1}
  assert found["named"] == ["0.jpg: label out of range (class -1 of 3)"]


def test_a_runner_that_beam_does_not_take():
  preparing.check_runner("DirectRunner", ["--direct_num_workers=2"])
  with pytest.raises(UserError, match="does not take .* = 'Dataflow'"):
    preparing.check_runner("Dataflow", [])
