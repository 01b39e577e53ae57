import dataclasses
import json
import os
import shutil

import pytest

from nfnets_tf.data.dataset_info import SplitInfo, read_split_info
from nfnets_tf.errors import UserError
from nfnets_tf.train.data_identity import record_data
from nfnets_tf.train.run_dir import RunDir


def test_result_marks_run_as_finished(tmp_path):
  files = RunDir(str(tmp_path))
  assert files.read_result() is None
  files.write_result({"step": 3})
  assert files.read_result() == {"step": 3}


def texts(folder):
  return {path.name: path.read_text() for path in folder.iterdir()}


def test_replaced_configurations_are_kept_in_order(tmp_path):
  files = RunDir(str(tmp_path / "run"))
  for text in ("A = 1\n", "A = 1\n", "A = 2\n", "A = 2\n", "A = 3\n"):
    files.write_config(text)
  assert texts(tmp_path / "run") == {
    "config.gin": "A = 3\n",
    "config.1.gin": "A = 1\n",
    "config.2.gin": "A = 2\n",
  }


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_accepts_directory_that_can_be_written(tmp_path, below):
  RunDir(f"{tmp_path}{below}").check_writable()
  assert os.listdir(tmp_path) == []  # it only looks


def test_refuses_directory_below_a_file(tmp_path):
  (tmp_path / "file").touch(0o777)
  for below in ("", "/a/b"):
    files = RunDir(f"{tmp_path}/file{below}")
    with pytest.raises(UserError, match="file' is not a directory; give a"):
      files.check_writable()


def test_refuses_read_only_directory(tmp_path, monkeypatch):
  """Root may write anywhere, hence the fake `os.access`."""
  locked = str(tmp_path)
  monkeypatch.setattr(os, "access", lambda path, mode: path != locked)
  for root in (locked, f"{locked}/a/b"):
    with pytest.raises(UserError, match=f"{locked}' is not writable; give"):
      RunDir(root).check_writable()
  (tmp_path / "a").mkdir()
  RunDir(f"{locked}/a/b").check_writable()


def test_remote_directory_is_not_checked():
  RunDir("gs://bucket/run").check_writable()


def test_refuses_changed_data(tmp_path):
  files = RunDir(str(tmp_path))
  index = SplitInfo(
    ("data/a", "data/b"), (3, 4), 2, ("x", "y"), hashes=("1", "2")
  )
  for folder in ("data", "data", "elsewhere"):
    moved = (f"{folder}/a", f"{folder}/b")
    moved = dataclasses.replace(index, files=moved)
    record_data(files.root, num_data_streams=2, train=moved, heldout=moved)
  for change, message in (
    ({"counts": (3, 5)}, r"number of examples \(7 then, 8 now\)"),
    ({"num_classes": 3}, "number of classes"),
    ({"class_names": ("y", "x")}, "order of the classes"),
    ({"files": ("data/a",)}, "number of shards"),
    ({"hashes": ("1", "3")}, "content of the shards"),
  ):
    other = dataclasses.replace(index, **change)
    with pytest.raises(UserError, match=f"'heldout' data .* {message}.*elsew"):
      record_data(files.root, num_data_streams=2, train=index, heldout=other)


def test_run_of_an_earlier_release_resumes(tmp_path, make_dataset, caplog):
  """It recorded the folder and the number of examples."""
  directory = make_dataset(train=8)
  info = read_split_info(directory, "train")
  record = {"folder": directory, "examples": 8}
  data = {"format": 2, "train": record, "num_data_streams": 1}
  path = tmp_path / "run" / "data.json"

  def resume(info):
    record_data(str(path.parent), num_data_streams=4, train=info)

  path.parent.mkdir()
  path.write_text(json.dumps(data))
  resume(info)  # in place
  assert json.loads(path.read_text())["num_data_streams"] == 1
  path.write_text(json.dumps(data))
  moved = shutil.copytree(directory, tmp_path / "moved")
  resume(read_split_info(str(moved), "train"))  # the folder of then is there
  assert not caplog.text
  other = dataclasses.replace(info, files=("x/train-a",), hashes=("other",))
  path.write_text(json.dumps(data))
  with pytest.raises(UserError, match="content of the shards|number of shards"):
    resume(other)
  shutil.rmtree(directory)
  resume(other)  # nothing is known but the number
  assert "earlier release" in caplog.text and directory in caplog.text
  with pytest.raises(UserError, match="content of the shards|number of shards"):
    resume(info)  # from now on by content
  path.write_text(json.dumps(data))
  with pytest.raises(UserError, match=r"examples \(8 then, 3 now\)"):
    resume(dataclasses.replace(other, counts=(3,)))


def test_run_keeps_its_number_of_data_streams(tmp_path):
  files = RunDir(str(tmp_path))
  assert files.read_num_data_streams() is None
  index = SplitInfo(("data/a",), (3,), 2, ())
  record_data(files.root, num_data_streams=4, train=index)
  record_data(
    files.root, num_data_streams=2, train=index
  )  # resumed by other hosts
  assert files.read_num_data_streams() == 4


def test_refuses_layout_of_earlier_release(tmp_path):
  files = RunDir(str(tmp_path))
  files.check_layout()  # a new directory
  index = SplitInfo(("data/a",), (3,), 2, ())
  split = {"folder": "data", "examples": 3}
  (tmp_path / "data.json").write_text(json.dumps({"train": split, "parts": 2}))
  for access in (
    files.check_layout,
    files.read_num_data_streams,
    lambda: record_data(files.root, num_data_streams=2, train=index),
  ):
    with pytest.raises(UserError, match="layout 1 of another release"):
      access()
