import os

import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.serving import versioning
from nfnets_tf.serving.versioning import (
  PendingDirectory,
  create_directory,
  create_next_version,
  list_files,
  next_version,
)


def write(folder, *names):
  for name in names:
    path = os.path.join(folder, name)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "w") as file:
      file.write(name)


def test_the_number_after_the_largest_is_next(tmp_path):
  """Servers take the largest; a gap below it would never be served."""
  assert next_version(str(tmp_path / "none")) == str(tmp_path / "none" / "1")
  for name in ("2", "9", "10", "partial-12ab-13"):
    (tmp_path / name).mkdir()
  assert next_version(str(tmp_path)) == str(tmp_path / "11")
  write("ram://versions_next/3", "saved_model.pb")
  assert next_version("ram://versions_next") == "ram://versions_next/4"


@pytest.mark.parametrize("root", ["", "ram://versions_test"])
def test_a_folder_appears_when_it_is_full(tmp_path, root):
  directory = os.path.join(root or str(tmp_path), "served", "1")
  with create_directory(directory) as partial:
    write(partial.folder, "saved_model.pb", "variables/index", "z.txt")
    assert not tf.io.gfile.exists(directory)
    assert os.path.dirname(partial.folder) == os.path.dirname(directory)
    assert partial == PendingDirectory(partial.folder, path=None)
  assert partial.path == directory
  found = sorted(x[len(directory) + 1 :] for x in list_files(directory))
  assert found == ["saved_model.pb", "variables/index", "z.txt"]
  assert not tf.io.gfile.exists(partial.folder)


def test_where_folders_are_not_moved_the_model_comes_last(monkeypatch):
  """A server looks for it first."""
  moved = []
  rename = tf.io.gfile.rename
  monkeypatch.setattr(
    tf.io.gfile, "rename", lambda a, b: moved.append(b) or rename(a, b)
  )
  directory = "ram://versions_order/1"
  with create_directory(directory) as partial:
    write(partial.folder, "saved_model.pb", "variables/index", "z.txt")
  assert moved[-1] == f"{directory}/saved_model.pb" and len(moved) == 3


@pytest.mark.parametrize("root", ["", "ram://versions_race"])
def test_of_two_at_a_time_each_gets_a_number(tmp_path, root, monkeypatch):
  """Both look for the next one before either has taken it."""
  directory = os.path.join(root or str(tmp_path), "served")
  free = versioning.next_version
  with (
    create_next_version(directory) as one,
    create_next_version(directory) as two,
  ):
    for partial in (one, two):
      own = f"own-{partial.folder[-13:]}"
      write(partial.folder, "MODEL_CARD.md", "saved_model.pb", own)
    stale = iter([free(directory)] * 2)
    monkeypatch.setattr(
      versioning, "next_version", lambda x: next(stale, None) or free(x)
    )
  assert (two.path, one.path) == (f"{directory}/1", f"{directory}/2")
  for partial in (one, two):
    names = {os.path.basename(x) for x in list_files(partial.path)}
    own = f"own-{partial.folder[-13:]}"
    assert names == {"MODEL_CARD.md", "saved_model.pb", own}


def test_what_breaks_off_half_way_is_no_second_version(monkeypatch):
  """Where files are moved one by one, the others must not go elsewhere."""
  rename, moved = tf.io.gfile.rename, []

  def fails_at_the_second(source, target):
    if moved:
      raise tf.errors.AlreadyExistsError(None, None, "there")
    moved.append(target)
    rename(source, target)

  monkeypatch.setattr(tf.io.gfile, "rename", fails_at_the_second)
  directory = "ram://versions_half"
  with pytest.raises(tf.errors.AlreadyExistsError):
    with create_next_version(directory) as partial:
      write(partial.folder, "MODEL_CARD.md", "saved_model.pb")
  assert [x.rstrip("/") for x in tf.io.gfile.listdir(directory)] == ["1"]
  assert not tf.io.gfile.exists(f"{directory}/1/saved_model.pb")


def test_a_slash_at_the_end_changes_nothing(tmp_path):
  with create_directory(f"{tmp_path}/1/") as partial:
    write(partial.folder, "saved_model.pb")
  assert os.listdir(tmp_path) == ["1"]
  assert os.listdir(tmp_path / "1") == ["saved_model.pb"]


def test_what_fails_for_another_reason_is_not_tried_for_ever(
  tmp_path, monkeypatch
):
  def rename(*arguments):
    raise tf.errors.PermissionDeniedError(None, None, "no")

  monkeypatch.setattr(tf.io.gfile, "rename", rename)
  with pytest.raises(tf.errors.PermissionDeniedError):
    with create_next_version(str(tmp_path)) as partial:
      write(partial.folder, "saved_model.pb")
  assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing(tmp_path):
  with pytest.raises(OSError, match="no space"):
    with create_directory(str(tmp_path / "1")) as partial:
      write(partial.folder, "saved_model.pb")
      raise OSError("no space")
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / "1").mkdir()
  with pytest.raises(UserError, match=r"never overwritten.*/2'"):
    with create_directory(str(tmp_path / "1")):
      raise AssertionError("never entered")
