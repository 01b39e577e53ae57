import dataclasses
import hashlib
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.errors import UserError
from nfnets_tf.train.workdir import Workdir, run_folder, weights_sha256


def test_a_result_marks_a_run_as_finished(tmp_path):
  files = Workdir(str(tmp_path))
  assert files.read_result() is None
  files.write_result({"step": 3})
  assert files.read_result() == {"step": 3}


def texts(folder):
  return {path.name: path.read_text() for path in folder.iterdir()}


def test_configurations_are_kept_in_their_order(tmp_path):
  files = Workdir(str(tmp_path / "run"))
  for text in ("A = 1\n", "A = 1\n", "A = 2\n", "A = 2\n", "A = 3\n"):
    files.keep_configuration(text)
  assert texts(tmp_path / "run") == {
    "config.gin": "A = 3\n",
    "config.1.gin": "A = 1\n",
    "config.2.gin": "A = 2\n",
  }


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_folder_that_can_be_made_or_written_to_is_accepted(tmp_path, below):
  Workdir(f"{tmp_path}{below}").check_writable()
  assert os.listdir(tmp_path) == []  # it only looks


def test_a_folder_below_a_file_is_refused(tmp_path):
  (tmp_path / "file").touch(0o777)
  for below in ("", "/a/b"):
    files = Workdir(f"{tmp_path}/file{below}")
    with pytest.raises(UserError, match="file' is no folder; give a folder"):
      files.check_writable()


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
  """Whoever runs the tests may write anywhere, hence the stand-in."""
  locked = str(tmp_path)
  monkeypatch.setattr(os, "access", lambda path, mode: path != locked)
  for root in (locked, f"{locked}/a/b"):
    with pytest.raises(UserError, match=f"{locked}' is not writable; give"):
      Workdir(root).check_writable()
  (tmp_path / "a").mkdir()
  Workdir(f"{locked}/a/b").check_writable()


def test_what_is_no_local_folder_is_not_judged():
  Workdir("gs://bucket/run").check_writable()


def test_data_that_have_changed_are_refused(tmp_path):
  files = Workdir(str(tmp_path))
  index = SplitIndex(("data/a", "data/b"), (3, 4), 2, ())
  for _ in range(2):
    files.keep_data(parts=2, train=index, heldout=index)
  for other in (
    dataclasses.replace(index, counts=(3, 5)),
    dataclasses.replace(index, files=("other/a", "other/b")),
  ):
    with pytest.raises(UserError, match="'heldout' data have changed .* 7"):
      files.keep_data(parts=2, train=index, heldout=other)


def test_a_run_remembers_the_parts_that_it_began_with(tmp_path):
  files = Workdir(str(tmp_path))
  assert files.read_parts() is None
  index = SplitIndex(("data/a",), (3,), 2, ())
  files.keep_data(parts=4, train=index)
  files.keep_data(parts=2, train=index)  # gone on with by other hosts
  assert files.read_parts() == 4
  # Before they were written down there was one host.
  (tmp_path / "data.json").write_text("{}")
  assert files.read_parts() is None


def test_the_digest_is_of_the_bytes_in_variable_order():
  a, b = np.float32([1, 2]), np.float32([[3]])
  digest = weights_sha256([tf.Variable(a), tf.Variable(b)])
  assert digest == hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()
  assert digest != weights_sha256([tf.Variable(b), tf.Variable(a)])


def test_the_run_of_a_checkpoint_is_found_from_whatever_names_it(
  tmp_path, monkeypatch
):
  run = tmp_path / "run"
  (run / "checkpoints").mkdir(parents=True)
  (run / "config.gin").touch()
  for path in ("run", "run/", "run/checkpoints", "run/checkpoints/ckpt-7"):
    assert run_folder(f"{tmp_path}/{path}") == str(run)
  for path in ("", "other", "other/checkpoints/ckpt-7", "run/a/b/c"):
    assert run_folder(f"{tmp_path}/{path}") is None
  # A SavedModel below it has a copy of its configuration.
  (run / "saved_model" / "1").mkdir(parents=True)
  for name in ("config.gin", "saved_model.pb"):
    (run / "saved_model" / "1" / name).touch()
  assert run_folder(f"{run}/saved_model/1") == str(run)
  monkeypatch.chdir(run)
  for path in (".", "checkpoints", "checkpoints/ckpt-7"):
    assert run_folder(path) == "."
  tf.io.gfile.makedirs("ram://bucket/run/checkpoints")
  with tf.io.gfile.GFile("ram://bucket/run/config.gin", "w") as file:
    file.write("A = 1")
  assert run_folder("ram://bucket/run/checkpoints/") == "ram://bucket/run"
