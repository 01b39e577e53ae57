import json
import os

import pytest

from nfnets_tf.data import preparing
from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.build_shards import BuildShardsJob
from nfnets_tf.jobs.job import RunContext
from tests.support.datasets import SmoothImages as Pictures
from tests.support.datasets import names_in


def make(directory, catalog=None, **options):
  return BuildShardsJob(
    **{
      "catalog": catalog or Pictures(),
      "directory": str(directory),
      "examples_per_shard": 5,
      "seed": 0,
      "without": None,
      "distance": 3,
      "max_bad_share": 0.1,
      "runner": "DirectRunner",
      "runner_options": ["--direct_running_mode=multi_threading"],
      **options,
    }
  )


def run(job, workdir):
  return job.run(RunContext(str(workdir), "# none\n"))


def contents(directory):
  return {
    name: open(os.path.join(directory, name), "rb").read()
    for name in sorted(os.listdir(directory))
  }


def test_shards_an_index_and_nothing_else(tmp_path):
  job = make(tmp_path / "shards")
  assert "22 images in 5 shards" in job.plan()
  assert not (tmp_path / "shards").exists()
  summary = run(job, tmp_path / "work")
  assert "20 images" in summary and "1 image not decodable" in summary
  names = sorted(os.listdir(tmp_path / "shards"))
  assert names == [
    "heldout-00000-of-00001.tfrecord",
    "index.json",
    *(f"train-{i:05d}-of-00005.tfrecord" for i in range(5)),
  ]
  found = read_split_info(str(tmp_path / "shards"), "train")
  assert found.num_examples == 20 and found.class_names == ("a", "b", "c")
  with open(tmp_path / "shards" / "index.json") as file:
    index = json.load(file)
  assert index["rule"] == "one in four"
  assert sum(index["splits"]["train"]["examples_by_class"]) == 20
  assert (tmp_path / "work" / "config.gin").exists()
  assert (tmp_path / "work" / "result.json").exists()


def test_finished_shards_are_not_written_again(tmp_path, monkeypatch):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  run(make(whole), tmp_path / "w1")
  # Killed after two shards: the index was not written.
  job = make(parts)
  job._folder.take()
  for task in job._tasks["train"][:2]:
    preparing.write_task(task, Pictures(), None)
  before = os.stat(job._tasks["train"][0].path).st_mtime_ns
  with pytest.raises(UserError, match="are not all written; start the job"):
    read_split_info(str(parts), "train")
  with open(f"{job._tasks['train'][3].path}.partial-1", "wb"):
    pass  # of a writer that was killed
  run(make(parts), tmp_path / "w2")
  assert os.stat(job._tasks["train"][0].path).st_mtime_ns == before
  assert contents(parts) == contents(whole)
  monkeypatch.setattr(preparing, "run_tasks", None)
  assert "20 images" in run(make(parts), tmp_path / "w2")  # done already


def test_a_folder_of_something_else_is_refused(tmp_path):
  run(make(tmp_path), tmp_path / "work")
  for change in (
    {"seed": 1},
    {"without": Pictures(2)},
    {"examples_per_shard": 6},
    {"catalog": Pictures(key="others")},
  ):
    with pytest.raises(UserError, match="holds shards of other images"):
      run(make(tmp_path, **change), tmp_path / "other")
  half = tmp_path / "half"
  make(half)._folder.take()
  with pytest.raises(UserError, match="other images or settings .preparing"):
    run(make(half, seed=1), tmp_path / "other")


def test_too_many_bad_images_leave_no_index(tmp_path):
  with pytest.raises(UserError, match="2 of 23 images cannot be used.*17.jpg"):
    run(make(tmp_path / "shards", max_bad_share=0.05), tmp_path / "work")
  assert not (tmp_path / "shards" / "index.json").exists()
  summary = run(make(tmp_path / "shards"), tmp_path / "work")
  assert "20 images" in summary  # a larger share needs no writing


def test_near_duplicates_are_reported(tmp_path):
  job = make(tmp_path / "shards", without=Pictures(3, first=20, quality=60))
  assert "looks like one of 3 images" in job.plan()
  assert "3 near-duplicates" in run(job, tmp_path / "work")
  names = names_in(str(tmp_path / "shards" / "train-00000-of-00005.tfrecord"))
  assert not {"20.jpg", "21.jpg", "22.jpg"} & set(names)
  with open(tmp_path / "work" / "result.json") as file:
    left_out = json.load(file)["near_duplicates"]
  assert sorted(left_out) == ["20.jpg", "21.jpg", "22.jpg"]


def test_sizes_that_cannot_be(tmp_path):
  with pytest.raises(UserError, match="examples_per_shard = 0 cannot be used"):
    make(tmp_path, examples_per_shard=0)


def test_the_distance_is_one_of_the_settings(tmp_path):
  run(make(tmp_path / "s", without=Pictures(2, first=50)), tmp_path / "work")
  with pytest.raises(UserError, match="other images or settings"):
    run(
      make(tmp_path / "s", without=Pictures(2, first=50), distance=4),
      tmp_path / "work",
    )


def test_lost_and_cut_shards_are_written_again(tmp_path, caplog):
  run(make(tmp_path / "s"), tmp_path / "work")
  before = contents(tmp_path / "s")
  os.remove(tmp_path / "s" / "train-00001-of-00005.tfrecord")
  os.truncate(tmp_path / "s" / "train-00002-of-00005.tfrecord", 50)
  with caplog.at_level("INFO"):
    run(make(tmp_path / "s"), tmp_path / "work")
  assert (
    "2 shards are missing or cut off; they are written again" in caplog.text
  )
  assert contents(tmp_path / "s") == before
  os.remove(tmp_path / "s" / "train-00001-of-00005.tfrecord")
  with pytest.raises(UserError, match="not what index.json says: the images"):
    run(make(tmp_path / "s", Pictures(quality=50)), tmp_path / "work")


def test_another_process_may_have_written_all_meanwhile(
  tmp_path, monkeypatch, caplog
):
  run(make(tmp_path / "s"), tmp_path / "work")
  index = (tmp_path / "s" / "index.json").read_text()
  (tmp_path / "s" / "index.json").rename(tmp_path / "s" / "preparing.json")

  def run_tasks(*args, **options):
    (tmp_path / "s" / "index.json").write_text(index)
    raise RuntimeError("a part is not there any more")

  monkeypatch.setattr(preparing, "run_tasks", run_tasks)
  with caplog.at_level("INFO"):
    assert "20 images" in run(make(tmp_path / "s"), tmp_path / "work")
  assert "Another process has written" in caplog.text
  (tmp_path / "s" / "index.json").rename(tmp_path / "s" / "preparing.json")
  index = "{}"
  with pytest.raises((RuntimeError, KeyError)):
    run(make(tmp_path / "s"), tmp_path / "work")


def test_nothing_that_was_there_is_touched(tmp_path):
  (tmp_path / "train-00000-of-00005.tfrecord").write_bytes(b"mine")
  before = contents(tmp_path)
  with pytest.raises(UserError, match="holds other files, such as 'train-0"):
    run(make(tmp_path), tmp_path.parent / "work")
  assert contents(tmp_path) == before
  with pytest.raises(UserError, match="is a file; bind DATA_DIR to a folder"):
    run(
      make(tmp_path / "train-00000-of-00005.tfrecord"), tmp_path.parent / "work"
    )
  with pytest.raises(UserError, match="nothing can be written to '/proc/x'"):
    run(make("/proc/x"), tmp_path.parent / "work")


def test_brackets_in_a_folders_name(tmp_path):
  run(make(tmp_path / "set [2024]"), tmp_path / "work")
  assert len(contents(tmp_path / "set [2024]")) == 7


def test_a_split_of_which_nothing_is_left(tmp_path):
  job = make(tmp_path / "s", Pictures(12), without=Pictures(12))
  with pytest.raises(
    UserError, match="no image of the 'heldout' split is left"
  ):
    run(job, tmp_path / "work")
  assert not (tmp_path / "s" / "index.json").exists()


@pytest.mark.parametrize(
  "options, message",
  [
    ({"seed": -1}, "seed = -1 cannot be used"),
    ({"max_bad_share": 5}, "max_bad_share = 5 cannot be used"),
    ({"distance": 20}, "a distance of 20 bits"),
  ],
)
def test_settings_that_cannot_be(tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    make(tmp_path, **options)
