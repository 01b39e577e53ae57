"""Checkpoints of the tiny network: saved, rotated, damaged, refused."""

import os
import resource
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import RunError, UserError
from nfnets_tf.fileio import (
  checkpoint_path,
  checkpoint_steps,
  latest_checkpoint,
)
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.checkpointing import Checkpointer, write_checkpoint
from nfnets_tf.train.classifier import Classifier
from tests.support import tiny


def make(directory, classes=4, keep=2, seed=0, writes=True, **options):
  model = Classifier(tiny.network(classes), **options)
  model.compile(SGD(0.1))
  return model, Checkpointer(
    str(directory), model, seed=seed, keep=keep, writes=writes
  )


def state_of(model):
  return [
    *model.network.weights,
    *model.averages,
    *model.optimizer.variables,
    *(v for metric in model.metrics for v in metric.variables),
    model.guard.consecutive_skips,
  ]


def advance(model, steps=1):
  """Changes the whole state, as training would, and counts steps."""
  for _ in range(steps):
    for i, variable in enumerate(state_of(model)):
      if variable.dtype.is_floating:
        variable.assign(1.5 * variable + i)
    model.guard.consecutive_skips.assign_add(2)
    model.optimizer.iterations.assign_add(1)


def save(checkpoints):
  checkpoints.save()
  checkpoints.wait()


def assert_same_state(values, model):
  for a, b in zip(values, state_of(model)):
    np.testing.assert_array_equal(a, b)


def test_restores_the_saved_state_bit_identically(tmp_path, monkeypatch):
  model, checkpoints = make(tmp_path)
  assert checkpoints.restore() == 0 and checkpoints.latest is None
  release, write = threading.Event(), tf.train.Checkpoint.write

  def write_later(self, path):
    assert release.wait(60)
    return write(self, path)

  monkeypatch.setattr(tf.train.Checkpoint, "write", write_later)
  advance(model, 3)
  checkpoints.data_offset.assign(2**40)
  expected = [v.numpy() for v in state_of(model)]
  checkpoints.save()
  advance(model, 2)  # training continues while it is written
  assert checkpoints.step == 5 and not checkpoint_steps(str(tmp_path))
  release.set()
  checkpoints.wait()
  resumed, restored = make(tmp_path)
  assert restored.restore() == 3 == restored.latest_step == restored.step
  assert restored.data_offset.numpy() == 2**40
  assert_same_state(expected, resumed)


def test_keeps_the_latest_and_the_best(tmp_path):
  model, checkpoints = make(tmp_path)
  for loss in (2.0, 1.0, 1.0, 3.0, float("inf")):
    advance(model)
    checkpoints.save_if_best(loss)
    checkpoints.save()
  checkpoints.wait()
  assert checkpoints.best == {"step": 2, "loss": 1.0}
  assert checkpoint_steps(str(tmp_path)) == [2, 4, 5]
  # TensorFlow's own list is kept for other tools.
  latest = tf.train.latest_checkpoint(str(tmp_path))
  assert latest == checkpoints.latest == str(tmp_path / "ckpt-5")
  _, restored = make(tmp_path)
  assert restored.restore() == 5
  assert restored.best == {"step": 2, "loss": 1.0}


def test_only_the_writing_process_writes(tmp_path):
  model, checkpoints = make(tmp_path, writes=False)
  advance(model)
  checkpoints.save_if_best(1.0)
  checkpoints.wait()
  assert list(tmp_path.iterdir()) == [] and checkpoints.latest_step == 1


def test_directory_that_vanishes_meanwhile_is_not_made_again(
  tmp_path, monkeypatch
):
  folder = tmp_path / "run" / "checkpoints"
  folder.mkdir(parents=True)
  mkdir = tf.io.gfile.mkdir

  def make_and_lose(path):
    mkdir(path)
    (tmp_path / "run").rename(tmp_path / "moved")

  monkeypatch.setattr(tf.io.gfile, "mkdir", make_and_lose)
  with pytest.raises(tf.errors.NotFoundError):
    write_checkpoint({"v": tf.Variable(1.0)}, str(folder), 1)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, "garbage"])
def test_restores_without_tensorflows_checkpoint_file(tmp_path, content):
  model, checkpoints = make(tmp_path)
  advance(model)
  save(checkpoints)
  if content is None:
    (tmp_path / "checkpoint").unlink()
  else:
    (tmp_path / "checkpoint").write_text(content)
  assert make(tmp_path)[1].restore() == 1


def test_discards_checkpoints_after_the_accepted_one(tmp_path):
  model, checkpoints = make(tmp_path, keep=3)
  for loss in (2.0, 1.0, 3.0):
    advance(model)
    checkpoints.save_if_best(loss)
    checkpoints.save()
  _, restored = make(tmp_path, keep=3)
  checkpoints.wait()
  assert restored.restore(lambda: restored.step < 2) == 1
  restored.discard_later()
  assert checkpoint_steps(str(tmp_path)) == [1] and restored.best is None
  with pytest.raises(UserError, match="none of the 1 checkpoints"):
    restored.restore(lambda: False)


def test_full_disk_keeps_existing_checkpoints(tmp_path):
  model, checkpoints = make(tmp_path)
  advance(model)
  save(checkpoints)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
  try:
    advance(model)
    checkpoints.save()
    with pytest.raises(RunError, match="cannot be written .*too large"):
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert checkpoint_steps(str(tmp_path)) == [1]
  assert make(tmp_path)[1].restore() == 1
  assert not (tmp_path / "partial").exists()
  advance(model)
  save(checkpoints)
  assert checkpoint_steps(str(tmp_path)) == [1, 3]


def test_vanished_directory_is_not_created_again(tmp_path):
  directory = tmp_path / "run"
  model, checkpoints = make(directory)
  save(checkpoints)
  shutil.rmtree(directory)
  advance(model)
  checkpoints.save()
  advance(model)
  with pytest.raises(RunError, match="cannot be written"):
    checkpoints.save()
  assert not directory.exists()


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
def test_damaged_checkpoint_falls_back_to_previous(tmp_path, suffix, caplog):
  model, checkpoints = make(tmp_path)
  for loss in (2.0, 1.0):
    advance(model)
    checkpoints.save_if_best(loss)
  path = tmp_path / f"ckpt-2.{suffix}"
  flip_a_bit(path)
  resumed, restored = make(tmp_path)
  assert restored.restore() == 1 == restored.latest_step
  assert "ckpt-2 is damaged" in caplog.text
  restored.discard_later()
  assert restored.best is None and checkpoint_steps(str(tmp_path)) == [1]
  assert (tmp_path / f"{path.name}.damaged").exists()
  advance(resumed)
  save(restored)
  last, checkpoints = make(tmp_path)
  assert checkpoints.restore() == 2 == checkpoints.latest_step
  assert_same_state([v.numpy() for v in state_of(model)], last)


def test_checkpoint_without_data_is_damaged(tmp_path):
  model, checkpoints = make(tmp_path)
  for _ in range(2):
    advance(model)
    save(checkpoints)
  (tmp_path / "ckpt-2.data-00000-of-00001").unlink()
  assert make(tmp_path)[1].restore() == 1
  (tmp_path / "ckpt-1.index").unlink()
  with pytest.raises(UserError, match="none of the 1 checkpoints in .* can be"):
    make(tmp_path)[1].restore()


def test_network_failure_is_not_damage(tmp_path, monkeypatch):
  _, checkpoints = make(tmp_path)
  save(checkpoints)

  def read(self, path):
    raise tf.errors.UnavailableError(None, None, "the network")

  monkeypatch.setattr(tf.train.Checkpoint, "read", read)
  with pytest.raises(tf.errors.UnavailableError):
    checkpoints.restore()


@pytest.mark.parametrize(
  "saved, restored",
  [
    ({"classes": 5}, {}),
    ({"ema_decay": None}, {}),  # without averages
    ({}, {"ema_decay": None}),
  ],
)
def test_refuses_checkpoint_of_another_model(tmp_path, saved, restored):
  save(make(tmp_path, **saved)[1])
  with pytest.raises(UserError, match="does not fit this network"):
    make(tmp_path, **restored)[1].restore()


def test_refuses_checkpoint_of_another_seed(tmp_path):
  save(make(tmp_path, seed=1)[1])
  with pytest.raises(UserError, match="SEED = 1, but SEED = 2"):
    make(tmp_path, seed=2)[1].restore()


@pytest.fixture(params=["local", "ram"])
def directory(request, tmp_path):
  """A directory on the local and on another file system."""
  if request.param == "local":
    return str(tmp_path)
  path = f"ram://{tmp_path.name}"
  tf.io.gfile.makedirs(path)
  return path


def write(value, directory, step):
  variables = {"x": tf.Variable(np.full([100], float(value)))}
  write_checkpoint(variables, directory, step)


def read(path):
  x = tf.Variable(np.zeros([100]))
  tf.train.Checkpoint(x=x).read(path).assert_consumed()
  return x.numpy()[0]


def test_steps_sort_as_numbers_and_are_replaced(directory):
  assert checkpoint_steps(directory) == []
  assert latest_checkpoint(directory) is None
  for step, value in ((9, 1), (100, 2), (20, 3), (9, 4)):
    write(value, directory, step)
  assert checkpoint_steps(directory) == [9, 20, 100]
  assert latest_checkpoint(directory) == checkpoint_path(directory, 100)
  assert read(checkpoint_path(directory, 9)) == 4
  assert checkpoint_steps(os.path.join(directory, "none")) == []


@pytest.mark.parametrize("moved", [0, 1])
def test_killed_write_is_invisible(tmp_path, monkeypatch, moved):
  """After any number of files that were moved when the process died."""
  rename, count = tf.io.gfile.rename, []

  def die(*arguments, **options):
    if len(count) == moved:
      raise KeyboardInterrupt
    count.append(1)
    rename(*arguments, **options)

  write(1, str(tmp_path), 1)
  with monkeypatch.context() as patch:
    patch.setattr(tf.io.gfile, "rename", die)
    patch.setattr(tf.io.gfile, "rmtree", lambda path: None)
    with pytest.raises(KeyboardInterrupt):
      write(2, str(tmp_path), 2)
  assert checkpoint_steps(str(tmp_path)) == [1]
  write(3, str(tmp_path), 2)  # over the remains
  assert read(checkpoint_path(str(tmp_path), 2)) == 3
  assert not (tmp_path / "partial").exists()
