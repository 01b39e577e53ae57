import os

import pytest

from nfnets_tf.data import preparing
from nfnets_tf.data.shard_folder import ShardFolder
from nfnets_tf.errors import UserError
from tests.support.datasets import SmoothImages as Pictures
from tests.support.datasets import plan_small_tasks as tasks_of


def make(directory, key="k"):
  catalog = Pictures(10)
  tasks = tasks_of(catalog, directory)
  return ShardFolder(str(directory), key, tasks), catalog, tasks


def finish(directory):
  folder, catalog, tasks = make(directory)
  folder.take()
  for task in (task for some in tasks.values() for task in some):
    preparing.write_task(task, catalog, None)
  folder.conclude(catalog, max_bad_share=0)
  return folder, tasks


def test_it_is_taken_once(tmp_path):
  folder, _, _ = make(tmp_path / "a")
  folder.take()
  folder.take()
  assert folder.read_split_info() is None
  with pytest.raises(UserError, match="other images or settings .preparing"):
    make(tmp_path / "a", "another key")[0].take()


def test_the_index_ends_it_and_tidying_leaves_shards_alone(tmp_path):
  folder, tasks = finish(tmp_path / "a")
  assert folder.read_split_info()["splits"]["train"]["examples"] == 9
  folder.clean()
  names = sorted(path.name for path in (tmp_path / "a").iterdir())
  assert names == [
    "heldout-00000-of-00001.tfrecord",
    "index.json",
    "train-00000-of-00002.tfrecord",
    "train-00001-of-00002.tfrecord",
  ]
  folder.clean()
  assert len(list((tmp_path / "a").iterdir())) == 4


def test_lost_shards_are_found_and_other_bytes_are_refused(tmp_path):
  folder, tasks = finish(tmp_path / "a")
  index = folder.read_split_info()
  assert folder.lost(index) == []
  task = tasks["train"][1]
  with open(task.path, "ab") as file:
    file.write(b"x")
  assert folder.lost(index) == [task]
  with pytest.raises(UserError, match="the images have changed"):
    folder.check_mended(index, [task])
  os.truncate(task.path, os.path.getsize(task.path) - 1)
  folder.check_mended(index, [task])


def test_what_another_process_has_concluded_is_left_as_it_is(tmp_path):
  folder, _ = finish(tmp_path / "a")
  index = folder.read_split_info()
  folder.clean()
  folder.conclude(Pictures(10), max_bad_share=0)
  assert folder.read_split_info() == index
