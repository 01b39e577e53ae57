import concurrent.futures
import hashlib
import os
import uuid

import pytest
import tensorflow as tf

from nfnets_tf.errors import RunError, UserError
from nfnets_tf.fileio import (
  file_sha256,
  find_run_dir,
  read_bytes,
  read_json,
  report_write_errors,
  write_atomically,
)
from nfnets_tf.serving.versioning import create_directory
from nfnets_tf.train.run_dir import RunDir


def test_the_hash_of_all_bytes(tmp_path):
  content = os.urandom(10_000_000)
  (tmp_path / "a").write_bytes(content)
  assert file_sha256(str(tmp_path / "a")) == hashlib.sha256(content).hexdigest()


def test_reads_only_json_objects(tmp_path):
  (tmp_path / "a").write_text('{"b": [1]}')
  assert read_json(str(tmp_path / "a")) == {"b": [1]}
  for text, message in (("{", "not a JSON file"), ("[]", "holds list, not an")):
    (tmp_path / "a").write_text(text)
    with pytest.raises(UserError, match=f"a' .*{message}.*restore it"):
      read_json(str(tmp_path / "a"))


def test_a_replaced_file_is_whole_and_leaves_nothing_beside_it(tmp_path):
  path = str(tmp_path / "file")
  write_atomically(path, "old")
  write_atomically(path, "new")
  with open(path) as file:
    assert file.read() == "new"
  assert os.listdir(tmp_path) == ["file"]


def test_several_writers_leave_a_whole_file(tmp_path):
  path, contents = str(tmp_path / "file"), [c * 50_000 for c in "abc"]
  write_atomically(path, contents[0])
  seen = set()

  def write(content):
    for _ in range(60):
      write_atomically(path, content)
      seen.add(read_bytes(path).decode())

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(write, contents))
  assert seen == set(contents) and os.listdir(tmp_path) == ["file"]


def test_a_file_on_a_full_disk_ends_in_a_sentence(tmp_path, monkeypatch):
  path = tmp_path / "file"
  write_atomically(str(path), "old")
  monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
  (tmp_path / "file.00000000.partial").symlink_to("/dev/full")
  with pytest.raises(RunError, match="file' cannot be written .*No space left"):
    write_atomically(str(path), "new")
  assert path.read_text() == "old"


def test_missing_directory_is_one_sentence(tmp_path):
  path = str(tmp_path / "gone" / "file")
  with pytest.raises(RunError, match="cannot be written .*No such file"):
    write_atomically(path, "new")
  with pytest.raises(RunError, match=r"cannot be written \(No such file"):
    with report_write_errors(path), open(path, "w"):
      pass


@pytest.mark.parametrize(
  "error, reason",
  [
    (OSError(28, "No space left"), "No space left"),
    (OSError("the disk is away"), "the disk is away"),
    (tf.errors.UnavailableError(None, None, "503\nRetry."), "503"),
  ],
)
def test_errors_of_any_file_system_are_one_sentence(error, reason):
  with pytest.raises(RunError) as fault:
    with report_write_errors("gs://bucket/file"):
      raise error
  expected = f"'gs://bucket/file' cannot be written ({reason}); make room"
  assert str(fault.value).startswith(expected)
  assert "\n" not in str(fault.value) and fault.value.__cause__ is error


@pytest.mark.parametrize(
  "error", [TimeoutError(), tf.errors.UnknownError(None, None, "")]
)
def test_errors_without_a_message_are_one_sentence(error):
  with pytest.raises(RunError, match="'file' cannot be written"):
    with report_write_errors("file"):
      raise error


def test_other_errors_pass_through():
  with pytest.raises(KeyError), report_write_errors("file"):
    raise KeyError


def test_finds_run_of_checkpoint_path(tmp_path, monkeypatch):
  run = tmp_path / "run"
  (run / "checkpoints").mkdir(parents=True)
  (run / "config.gin").touch()
  for path in ("run", "run/", "run/checkpoints", "run/checkpoints/ckpt-7"):
    assert find_run_dir(f"{tmp_path}/{path}") == str(run)
  for path in ("", "other", "other/checkpoints/ckpt-7", "run/a/b/c"):
    assert find_run_dir(f"{tmp_path}/{path}") is None
  # A SavedModel below it has a copy of its configuration.
  (run / "saved_model" / "1").mkdir(parents=True)
  for name in ("config.gin", "saved_model.pb"):
    (run / "saved_model" / "1" / name).touch()
  assert find_run_dir(f"{run}/saved_model/1") == str(run)
  monkeypatch.chdir(run)
  for path in (".", "checkpoints", "checkpoints/ckpt-7"):
    assert find_run_dir(path) == "."
  tf.io.gfile.makedirs("ram://bucket/run/checkpoints")
  with tf.io.gfile.GFile("ram://bucket/run/config.gin", "w") as file:
    file.write("A = 1")
  assert find_run_dir("ram://bucket/run/checkpoints/") == "ram://bucket/run"


@pytest.mark.parametrize("name", ["exp [1]", "a[", "a\\b"])
def test_paths_that_tensorflow_takes_for_patterns_are_refused(tmp_path, name):
  root = str(tmp_path / name)
  with pytest.raises(UserError, match="without .* backslash") as refused:
    RunDir(root).check_writable()
  assert repr(root) in str(refused.value) and "--workdir" in str(refused.value)
  with (
    pytest.raises(UserError, match="the directory"),
    create_directory(f"{root}/1"),
  ):
    pass
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "name",
  ["a ]b", "a*?", "a {x} #1 %s $HOME `d` 'q' \"r\"", "ü\n", "-x", "a,;~"],
)
def test_other_paths_hold_checkpoints_that_tensorflow_reads(tmp_path, name):
  root = str(tmp_path / name)
  RunDir(root).check_writable()
  path = f"{root}/checkpoints/ckpt-1"
  variable = tf.Variable(3.0)
  tf.train.Checkpoint(x=variable).write(path)
  variable.assign(0.0)
  tf.train.Checkpoint(x=variable).read(path).assert_consumed()
  assert variable.numpy() == 3.0
  module = tf.Module()
  module.x = variable
  tf.saved_model.save(module, f"{root}/1")
  assert tf.saved_model.load(f"{root}/1").x.numpy() == 3.0
  with tf.summary.create_file_writer(f"{root}/tensorboard").as_default(step=1):
    tf.summary.scalar("loss", 1.0)
  assert tf.io.gfile.listdir(f"{root}/tensorboard")
