import contextlib
import functools
import json
import os
import pathlib
import threading

import pytest
import tensorflow as tf

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.shard_tasks import Beam, InProcess
from nfnets_tf.errors import UserError
from tests.support.datasets import SmoothImages, make_builder, names_in


def contents(directory):
  return {
    path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()
  }


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """Shards that were built at once; returns their contents."""
  directory = tmp_path_factory.mktemp("shards")
  make_builder(directory).build()
  return contents(directory)


def fill(directory, shards):
  """Copies finished shards; returns their builder."""
  directory.mkdir()
  for name, content in shards.items():
    (directory / name).write_bytes(content)
  return make_builder(directory)


def test_writes_shards_and_an_index_only(tmp_path):
  builder = make_builder(tmp_path / "set [2024]")  # no pattern
  lines = dict(builder.describe())
  assert lines["train"] == "22 images in 5 shards"
  assert lines["split by"] == "one in four"
  assert not (tmp_path / "set [2024]").exists()
  index = builder.build()
  files = contents(builder.directory)
  assert sorted(files) == [
    "heldout-00000-of-00001.tfrecord",
    "index.json",
    *(f"train-{i:05d}-of-00005.tfrecord" for i in range(5)),
  ]
  assert json.loads(files["index.json"]) == index
  info = read_split_info(builder.directory, "train")
  assert info.num_examples == 20 and info.class_names == ("a", "b", "c")
  assert index["rule"] == "one in four"
  assert sum(index["splits"]["train"]["examples_by_class"]) == 20
  invalid = index["left_out"]["faults"]
  assert invalid == {"image not decodable": 1, "not readable": 1}


def interrupted(shards):
  """Returns a runner that is killed after some shards."""

  def run(function, tasks):
    for task in tasks[:shards]:
      function(task)
    raise KeyboardInterrupt

  return run


def test_interrupted_build_resumes_to_the_same_bytes(tmp_path, shards):
  with pytest.raises(KeyboardInterrupt):
    make_builder(tmp_path, runner=interrupted(3)).build()
  with pytest.raises(UserError, match="are incomplete; rerun the job"):
    read_split_info(str(tmp_path), "train")
  written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.tfrecord")}
  assert len(written) == 3
  (tmp_path / "train-00004-of-00005.tfrecord.partial-1").touch()  # by a kill
  make_builder(tmp_path).build()
  assert contents(tmp_path) == shards
  assert {p: p.stat().st_mtime_ns for p in written} == written
  # All is written already.
  make_builder(tmp_path, runner=interrupted(0)).build()


def test_rewrites_lost_and_truncated_shards(tmp_path, shards, caplog):
  builder = fill(tmp_path / "a", shards)
  lost = tmp_path / "a" / "train-00001-of-00005.tfrecord"
  lost.unlink()
  os.truncate(tmp_path / "a" / "train-00002-of-00005.tfrecord", 50)
  with caplog.at_level("INFO"):
    builder.build()
  assert "Writing 2 lost or truncated shards again" in caplog.text
  assert "Wrote train-00002-of-00005.tfrecord: 4 examples" in caplog.text
  assert contents(tmp_path / "a") == shards
  lost.unlink()
  with pytest.raises(UserError, match="differs from what index.json states"):
    make_builder(tmp_path / "a", SmoothImages(quality=50)).build()


def test_concurrent_builders_write_the_same_shards(tmp_path, shards):
  """Two builders write the same shards at the same time."""
  barrier = threading.Barrier(2, timeout=60)

  def run(function, tasks):
    barrier.wait()
    InProcess()(function, tasks)

  indexes = []

  def build():
    indexes.append(make_builder(tmp_path, runner=run).build())

  threads = [threading.Thread(target=build) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(indexes) == 2 and contents(tmp_path) == shards


def test_claims_while_another_process_writes_its_claim(tmp_path, shards):
  (tmp_path / "preparing.json.ab12.partial").write_text("")
  make_builder(tmp_path).claim()
  assert (tmp_path / "preparing.json").exists()


@pytest.mark.parametrize("written", [1, 6], ids=["some", "all"])
def test_claims_what_another_process_has_claimed_meanwhile(
  tmp_path, shards, monkeypatch, written
):
  """That one begins and ends, or is killed, within this one's claim."""
  listdir = tf.io.gfile.listdir

  def build_and_list(path):
    monkeypatch.undo()
    runner = InProcess() if written == 6 else interrupted(written)
    with contextlib.suppress(KeyboardInterrupt):
      make_builder(tmp_path, runner=runner).build()
    return listdir(path)

  monkeypatch.setattr(tf.io.gfile, "listdir", build_and_list)
  make_builder(tmp_path).build()
  assert contents(tmp_path) == shards


def test_ignores_errors_once_another_process_has_finished(
  tmp_path, shards, caplog
):
  def run(function, tasks):
    for name, content in shards.items():
      (tmp_path / name).write_bytes(content)
    raise RuntimeError("a temporary file is missing")

  with caplog.at_level("INFO"):
    make_builder(tmp_path, runner=run).build()
  assert "Another process has written" in caplog.text
  assert contents(tmp_path) == shards
  # Without its index the error is one.
  (tmp_path / "index.json").rename(tmp_path / "preparing.json")
  shards = {}
  with pytest.raises(RuntimeError, match="temporary file"):
    make_builder(tmp_path, runner=run).build()


def test_index_of_another_process_is_kept(tmp_path, shards):
  def run(function, tasks):
    InProcess()(function, tasks)
    for path in tmp_path.iterdir():  # as the other one cleans up
      path.unlink()
    for name, content in shards.items():
      (tmp_path / name).write_bytes(content)

  make_builder(tmp_path, runner=run).build()
  assert contents(tmp_path) == shards


@pytest.mark.parametrize("begun", [True, False])
def test_rejects_directory_of_other_shards(tmp_path, shards, begun):
  if begun:
    make_builder(tmp_path / "a").claim()
    make_builder(tmp_path / "a").claim()  # its own
  else:
    fill(tmp_path / "a", shards)
  name = "preparing.json" if begun else "index.json"
  excluding = functools.partial(make_builder, exclude=SmoothImages(2, first=50))
  for change in (
    make_builder(tmp_path / "a", seed=1),
    make_builder(tmp_path / "a", examples_per_shard=6),
    make_builder(tmp_path / "a", SmoothImages(key="other", quality=90)),
    excluding(tmp_path / "a"),
  ):
    with pytest.raises(UserError, match=f"other images or settings .{name}"):
      change.build()
  excluding(tmp_path / "b").claim()
  with pytest.raises(UserError, match="other images or settings"):
    excluding(tmp_path / "b", max_hash_distance=4).build()


def test_rejects_directory_with_other_files(tmp_path):
  path = tmp_path / "train-00000-of-00005.tfrecord"
  path.write_bytes(b"mine")
  with pytest.raises(UserError, match="holds other files, such as 'train-0"):
    make_builder(tmp_path).build()
  for directory in (path, "/proc/x"):
    with pytest.raises(UserError, match=f"'{directory}' cannot be written"):
      make_builder(directory).build()
  assert contents(tmp_path) == {path.name: b"mine"}


def test_writes_no_index_with_too_many_invalid_images(tmp_path, shards):
  with pytest.raises(UserError, match="2 of 23 images are invalid.*17.jpg"):
    make_builder(tmp_path, max_invalid_fraction=0.05).build()
  assert not (tmp_path / "index.json").exists()
  # A larger fraction needs no writing.
  make_builder(tmp_path, runner=interrupted(0)).build()
  assert contents(tmp_path) == shards


def test_rejects_split_without_valid_images(tmp_path):
  with pytest.raises(UserError, match="no image of the 'heldout' split is"):
    make_builder(tmp_path, SmoothImages(12), exclude=SmoothImages(12)).build()
  assert not (tmp_path / "index.json").exists()


def test_beam_writes_the_same_bytes(tmp_path):
  options = {"exclude": SmoothImages(3, first=20, quality=60)}
  index = make_builder(tmp_path / "threads", **options).build()
  beam = Beam(
    runner="DirectRunner", options=["--direct_running_mode=multi_threading"]
  )
  builder = make_builder(tmp_path / "beam", **options, runner=beam)
  lines = dict(builder.describe())
  assert lines["excluded"] == "near-duplicates of 3 images"
  assert "DirectRunner" in lines["runner"]
  builder.build()
  assert contents(tmp_path / "beam") == contents(tmp_path / "threads")
  skipped = {"20.jpg", "21.jpg", "22.jpg"}
  assert set(index["left_out"]["near_duplicates"]) == skipped
  for path in (tmp_path / "beam").glob("train-*"):
    assert not skipped & set(names_in(str(path)))


def test_call_writes_only_missing_shards(tmp_path, shards):
  assert make_builder(tmp_path / "a")() is True
  assert contents(tmp_path / "a") == shards
  assert make_builder(tmp_path / "a")() is False
  # Of its shards, lost ones are written again.
  (tmp_path / "a" / "train-00001-of-00005.tfrecord").unlink()
  assert make_builder(tmp_path / "a")() is True
  assert contents(tmp_path / "a") == shards
  # Shards of a job with other settings, or of older versions, are used.
  assert make_builder(tmp_path / "a", seed=None)() is False
  index = json.loads(shards["index.json"])
  del index["key"]
  (tmp_path / "a" / "index.json").write_text(json.dumps(index))
  assert make_builder(tmp_path / "a")() is False


def test_call_removes_shards_with_too_many_invalid_images(tmp_path):
  with pytest.raises(UserError, match="2 of 23 images are invalid"):
    make_builder(tmp_path / "cache", max_invalid_fraction=0)()
  assert not (tmp_path / "cache").exists()
  make_builder(tmp_path / "cache", SmoothImages(key="others")).claim()
  with pytest.raises(UserError, match="other images or settings"):
    make_builder(tmp_path / "cache", max_invalid_fraction=0)()
  assert (tmp_path / "cache" / "preparing.json").exists()


@pytest.mark.parametrize(
  "options, message",
  [
    ({"examples_per_shard": 0}, "examples_per_shard = 0 is invalid"),
    ({"seed": -1}, "seed = -1 is invalid"),
    ({"max_invalid_fraction": 5}, "max_invalid_fraction = 5 is invalid"),
    ({"max_hash_distance": 20}, "max_hash_distance = 20 is invalid"),
  ],
)
def test_rejects_invalid_settings(tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    make_builder(tmp_path, **options)


def test_copies_of_the_images_are_the_same_images(tmp_path, shards):
  """The key of files follows from their times, which a copy changes."""
  builder = fill(tmp_path / "shards", shards)
  copied = make_builder(builder.directory, SmoothImages(key="copied anew"))
  assert copied.build()["key"] == copied.key
  expected = {**shards, "index.json": b""}
  assert {**contents(builder.directory), "index.json": b""} == expected
  # 17 is truncated and left out; with another quality all images differ.
  for change in (
    {"quality": 90},
    {"count": 22},
    {"first": 1},
    {"class_names": ("b", "a", "c")},
  ):
    other = make_builder(builder.directory, SmoothImages(key="other", **change))
    with pytest.raises(UserError, match="other images or settings"):
      other.build()
  with pytest.raises(UserError, match="other images or settings"):
    make_builder(builder.directory, SmoothImages(key="x"), seed=1).build()
  corrupt = pathlib.Path(builder.directory, "train-00003-of-00005.tfrecord")
  content = bytearray(corrupt.read_bytes())
  content[40] ^= 1
  corrupt.write_bytes(content)
  with pytest.raises(UserError, match="other images or settings"):
    make_builder(builder.directory, SmoothImages(key="y")).build()
  in_order = functools.partial(
    make_builder, tmp_path / "b", seed=None, examples_per_shard=50
  )
  in_order(SmoothImages(12)).build()
  with pytest.raises(UserError, match="other images or settings"):
    in_order(SmoothImages(13, key="one more")).build()
