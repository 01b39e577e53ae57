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


def test_next_version_follows_the_largest(tmp_path):
  """Servers take the largest; a gap below it would never be served."""
  assert next_version(str(tmp_path / "none")) == str(tmp_path / "none" / "1")
  for name in ("2", "9", "10", "partial-12ab-13"):
    (tmp_path / name).mkdir()
  assert next_version(str(tmp_path)) == str(tmp_path / "11")
  write("ram://versions_next/3", "saved_model.pb")
  assert next_version("ram://versions_next") == "ram://versions_next/4"


@pytest.mark.parametrize("root", ["", "ram://versions_test"])
def test_directory_appears_when_complete(tmp_path, root):
  directory = os.path.join(root or str(tmp_path), "served", "1")
  with create_directory(directory) as partial:
    write(partial.folder, "saved_model.pb", "variables/index", "z.txt")
    assert not tf.io.gfile.exists(directory)
    assert os.path.dirname(partial.folder) == os.path.dirname(directory)
    assert partial == PendingDirectory(partial.folder, path=None)
  assert partial.path == directory
  names = sorted(x[len(directory) + 1 :] for x in list_files(directory))
  assert names == ["saved_model.pb", "variables/index", "z.txt"]
  assert not tf.io.gfile.exists(partial.folder)


def test_model_file_is_moved_last_where_directories_cannot_be(monkeypatch):
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
def test_concurrent_exports_get_different_versions(tmp_path, root, monkeypatch):
  """Both see the same next version."""
  directory = os.path.join(root or str(tmp_path), "served")
  free = versioning.next_version
  with (
    create_next_version(directory) as first,
    create_next_version(directory) as second,
  ):
    for partial in (first, second):
      unique = f"unique-{partial.folder[-13:]}"
      write(partial.folder, "MODEL_CARD.md", "saved_model.pb", unique)
    stale = iter([free(directory)] * 2)
    monkeypatch.setattr(
      versioning, "next_version", lambda x: next(stale, None) or free(x)
    )
  assert (second.path, first.path) == (f"{directory}/1", f"{directory}/2")
  for partial in (first, second):
    names = {os.path.basename(x) for x in list_files(partial.path)}
    unique = f"unique-{partial.folder[-13:]}"
    assert names == {"MODEL_CARD.md", "saved_model.pb", unique}


def test_interrupted_move_does_not_continue_in_another_version(monkeypatch):
  """File by file, the remaining files must not move to another version."""
  rename, moved = tf.io.gfile.rename, []

  def fail_second_move(source, target):
    if moved:
      raise tf.errors.AlreadyExistsError(None, None, "there")
    moved.append(target)
    rename(source, target)

  monkeypatch.setattr(tf.io.gfile, "rename", fail_second_move)
  directory = "ram://versions_half"
  with pytest.raises(tf.errors.AlreadyExistsError):
    with create_next_version(directory) as partial:
      write(partial.folder, "MODEL_CARD.md", "saved_model.pb")
  assert [x.rstrip("/") for x in tf.io.gfile.listdir(directory)] == ["1"]
  assert not tf.io.gfile.exists(f"{directory}/1/saved_model.pb")


def test_trailing_slash_is_ignored(tmp_path):
  with create_directory(f"{tmp_path}/1/") as partial:
    write(partial.folder, "saved_model.pb")
  assert os.listdir(tmp_path) == ["1"]
  assert os.listdir(tmp_path / "1") == ["saved_model.pb"]


def test_other_errors_are_not_retried_forever(tmp_path, monkeypatch):
  def rename(*arguments):
    raise tf.errors.PermissionDeniedError(None, None, "no")

  monkeypatch.setattr(tf.io.gfile, "rename", rename)
  with pytest.raises(tf.errors.PermissionDeniedError):
    with create_next_version(str(tmp_path)) as partial:
      write(partial.folder, "saved_model.pb")
  assert list(tmp_path.iterdir()) == []


def test_error_leaves_no_files(tmp_path):
  with pytest.raises(OSError, match="no space"):
    with create_directory(str(tmp_path / "1")) as partial:
      write(partial.folder, "saved_model.pb")
      raise OSError("no space")
  assert list(tmp_path.iterdir()) == []


def test_existing_directory_is_not_overwritten(tmp_path):
  (tmp_path / "1").mkdir()
  with pytest.raises(UserError, match=r"never overwritten.*/2'"):
    with create_directory(str(tmp_path / "1")):
      raise AssertionError("never entered")
