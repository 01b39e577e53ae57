import os

import pytest
import tensorflow as tf

from nfnets_tf.ops.errors import UserError
from nfnets_tf.serving.versions import (
  appearing_whole,
  files_below,
  next_version,
)


def write(folder, *names):
  for name in names:
    path = os.path.join(folder, name)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "w") as file:
      file.write(name)


def test_the_first_free_number_is_next(tmp_path):
  assert next_version(str(tmp_path / "none")) == str(tmp_path / "none" / "1")
  for name in ("1", "2", "4", "partial-12ab-3"):
    (tmp_path / name).mkdir()
  assert next_version(str(tmp_path)) == str(tmp_path / "3")


@pytest.mark.parametrize("root", ["", "ram://versions_test"])
def test_a_folder_appears_when_it_is_full(tmp_path, root):
  directory = os.path.join(root or str(tmp_path), "served", "1")
  with appearing_whole(directory) as partial:
    write(partial, "saved_model.pb", "variables/index", "z.txt")
    assert not tf.io.gfile.exists(directory)
    assert os.path.dirname(partial) == os.path.dirname(directory)
  found = sorted(x[len(directory) + 1 :] for x in files_below(directory))
  assert found == ["saved_model.pb", "variables/index", "z.txt"]
  assert not tf.io.gfile.exists(partial)


def test_where_folders_are_not_moved_the_model_comes_last(monkeypatch):
  """A server looks for it first."""
  moved = []
  rename = tf.io.gfile.rename
  monkeypatch.setattr(
    tf.io.gfile, "rename", lambda a, b: moved.append(b) or rename(a, b)
  )
  directory = "ram://versions_order/1"
  with appearing_whole(directory) as partial:
    write(partial, "saved_model.pb", "variables/index", "z.txt")
  assert moved[-1] == f"{directory}/saved_model.pb" and len(moved) == 3


def test_an_error_leaves_nothing(tmp_path):
  with pytest.raises(OSError, match="no space"):
    with appearing_whole(str(tmp_path / "1")) as partial:
      write(partial, "saved_model.pb")
      raise OSError("no space")
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / "1").mkdir()
  with pytest.raises(UserError, match=r"not overwritten; export to .*/2'"):
    with appearing_whole(str(tmp_path / "1")):
      raise AssertionError("never entered")
