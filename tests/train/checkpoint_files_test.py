import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.train import checkpoint_files as files


def checkpoint(value):
  return tf.train.Checkpoint(x=tf.Variable(np.full([100], float(value))))


def read(path):
  x = tf.Variable(np.zeros([100]))
  tf.train.Checkpoint(x=x).read(path).assert_consumed()
  return x.numpy()[0]


@pytest.fixture(params=["local", "ram"])
def folder(request, tmp_path):
  """A folder, and one of another file system."""
  if request.param == "local":
    return str(tmp_path)
  path = f"ram://{tmp_path.name}"
  tf.io.gfile.makedirs(path)
  return path


def test_steps_are_numbers_and_the_newest_is_the_largest(folder):
  assert files.steps_in(folder) == [] and files.newest_in(folder) is None
  for step in (9, 100, 20):
    files.write(checkpoint(step), folder, step)
  assert files.steps_in(folder) == [9, 20, 100]
  assert files.newest_in(folder) == files.path_of(folder, 100)
  assert read(files.path_of(folder, 20)) == 20
  assert files.steps_in(os.path.join(folder, "none")) == []


def test_one_of_the_same_step_is_replaced(folder):
  for value in (1, 2):
    files.write(checkpoint(value), folder, 5)
  assert read(files.path_of(folder, 5)) == 2
  assert files.steps_in(folder) == [5]


def test_the_newest_and_the_best_stay(folder):
  assert files.read_best(folder) is None
  for step in range(1, 6):
    files.write(checkpoint(step), folder, step)
  files.write_best(folder, {"step": 2, "loss": 0.5})
  files.rotate(folder, keep=2)
  assert files.steps_in(folder) == [2, 4, 5]
  assert files.read_best(folder) == {"step": 2, "loss": 0.5}
  assert tf.train.latest_checkpoint(folder) == files.path_of(folder, 5)
  files.remove(folder, [4, 7])
  names = tf.io.gfile.listdir(folder)
  assert not any("ckpt-4" in name for name in names)


def test_a_folder_that_has_vanished_is_not_made_by_tidying_up(folder):
  files.rotate(f"{folder}/gone", keep=1)
  assert not tf.io.gfile.exists(f"{folder}/gone")


@pytest.mark.parametrize("moved", [0, 1])
def test_ended_while_it_is_written_it_is_not_seen(tmp_path, monkeypatch, moved):
  """Whatever the number of files that were moved when the process ended."""
  rename, count = tf.io.gfile.rename, []

  def end(*arguments, **options):
    if len(count) == moved:
      raise KeyboardInterrupt
    count.append(1)
    rename(*arguments, **options)

  files.write(checkpoint(1), str(tmp_path), 1)
  with monkeypatch.context() as patch:
    patch.setattr(tf.io.gfile, "rename", end)
    patch.setattr(tf.io.gfile, "rmtree", lambda path: None)
    with pytest.raises(KeyboardInterrupt):
      files.write(checkpoint(2), str(tmp_path), 2)
  assert files.steps_in(str(tmp_path)) == [1]
  files.write(checkpoint(3), str(tmp_path), 2)  # over what is left of it
  assert read(files.path_of(str(tmp_path), 2)) == 3
  assert not (tmp_path / "partial").exists()
