import resource
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import RunError, UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train import checkpoint_files
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.run_state import RunState


def make(directory, classes=3, keep=2, seed=0, writes=True):
  model = Classifier(NFNet("femto", classes))
  model.compile(SGD(0.1), run_eagerly=True)  # for a few steps that is faster
  state = RunState(seed=seed)
  return model, Checkpoints(
    str(directory), model, state, keep=keep, writes=writes
  )


def train(model, steps, offset=0):
  for step in range(steps):
    r = np.random.default_rng(offset + step)
    images = r.integers(0, 255, [4, 32, 32, 3]).astype(np.uint8)
    model.train_on_batch(images, r.integers(0, 3, 4))


def test_everything_comes_back_and_training_goes_on_to_the_same_bits(tmp_path):
  model, checkpoints = make(tmp_path)
  assert checkpoints.restore() == 0 and checkpoints.latest is None
  train(model, 3)
  checkpoints.save()
  train(model, 2, offset=3)  # while it is written
  checkpoints.wait()

  again, restored = make(tmp_path)
  assert restored.restore() == 3 == restored.latest_step == restored.step
  train(again, 2, offset=3)
  for a, b in zip(state_of(model), state_of(again)):
    np.testing.assert_array_equal(a, b)


def state_of(model):
  return [
    *model.network.weights,
    *model.averages,
    *model.optimizer.variables,
    *(v for metric in model.metrics for v in metric.variables),
    model.guard.consecutive_skips,
  ]


def steps_there(directory):
  return sorted(int(p.stem.split("-")[1]) for p in directory.glob("*.index"))


def test_the_newest_and_the_best_stay(tmp_path):
  model, checkpoints = make(tmp_path)
  for offset, loss in enumerate((2.0, 1.0, 1.0, 3.0, float("inf"))):
    train(model, 1, offset)
    checkpoints.save_if_best(loss)
    checkpoints.save()
  checkpoints.wait()
  assert checkpoints.best == {"step": 2, "loss": 1.0}
  assert steps_there(tmp_path) == [2, 4, 5]
  # Other tools find what TensorFlow keeps for them.
  newest = tf.train.latest_checkpoint(str(tmp_path))
  assert newest == checkpoints.latest == str(tmp_path / "ckpt-5")
  _, again = make(tmp_path)
  assert again.restore() == 5 and again.best == {"step": 2, "loss": 1.0}


def test_what_is_saved_is_what_it_was_when_it_was_asked_for(
  tmp_path, monkeypatch
):
  model, checkpoints = make(tmp_path)
  begin, write = threading.Event(), checkpoint_files.write

  def slow(*arguments):
    assert begin.wait(60)
    write(*arguments)

  monkeypatch.setattr(checkpoint_files, "write", slow)
  train(model, 1)
  expected = [v.numpy().copy() for v in state_of(model)]
  checkpoints.save()
  train(model, 2, offset=1)  # training goes on meanwhile
  assert checkpoints.step == 3 and not steps_there(tmp_path)
  begin.set()
  checkpoints.wait()
  again, restored = make(tmp_path)
  assert restored.restore() == 1
  for a, b in zip(expected, state_of(again)):
    np.testing.assert_array_equal(a, b)


def test_only_the_process_that_writes_writes(tmp_path):
  model, checkpoints = make(tmp_path, writes=False)
  train(model, 1)
  checkpoints.save_if_best(1.0)
  checkpoints.wait()
  assert list(tmp_path.iterdir()) == [] and checkpoints.latest_step == 1


def test_tensorflows_own_list_may_be_lost(tmp_path):
  model, checkpoints = make(tmp_path)
  train(model, 1)
  checkpoints.save()
  checkpoints.wait()
  (tmp_path / "checkpoint").unlink()
  assert make(tmp_path)[1].restore() == 1


def test_another_seed_is_refused(tmp_path):
  _, checkpoints = make(tmp_path, seed=1)
  checkpoints.save()
  checkpoints.wait()
  with pytest.raises(UserError, match="SEED = 1, but SEED = 2"):
    make(tmp_path, seed=2)[1].restore()


def test_what_does_not_fit_is_passed_over_and_can_be_discarded(tmp_path):
  model, checkpoints = make(tmp_path, keep=3)
  for offset, loss in enumerate((2.0, 1.0, 3.0)):
    train(model, 1, offset)
    checkpoints.save_if_best(loss)
    checkpoints.save()
  again, restored = make(tmp_path, keep=3)
  assert restored.restore(lambda: restored.step < 2) == 1
  restored.discard_later()
  assert steps_there(tmp_path) == [1] and restored.best is None
  with pytest.raises(UserError, match="none of the 1 checkpoints"):
    restored.restore(lambda: False)


def test_a_disk_that_is_full_ends_in_a_sentence_and_harms_nothing(tmp_path):
  model, checkpoints = make(tmp_path)
  train(model, 1)
  checkpoints.save()
  checkpoints.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    train(model, 1, 1)
    checkpoints.save()
    with pytest.raises(RunError, match="cannot be written .*too large"):
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert steps_there(tmp_path) == [1] and make(tmp_path)[1].restore() == 1
  assert not (tmp_path / "partial").exists()
  checkpoints.save()
  checkpoints.wait()
  assert steps_there(tmp_path) == [1, 2]


def test_a_folder_that_has_vanished_does_not_appear_anew(tmp_path):
  folder = tmp_path / "run"
  model, checkpoints = make(folder)
  checkpoints.save()
  checkpoints.wait()
  shutil.rmtree(folder)
  train(model, 1)
  checkpoints.save()
  with pytest.raises(RunError, match="cannot be written"):
    checkpoints.save()
  assert not folder.exists()


def flip_a_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


def test_a_damaged_one_is_set_aside_and_does_not_count_as_the_best(tmp_path):
  model, checkpoints = make(tmp_path, keep=1)
  for offset, loss in enumerate((2.0, 1.0)):
    train(model, 1, offset)
    checkpoints.save_if_best(loss)
    checkpoints.save()
    checkpoints.wait()
    if not offset:
      checkpoint_files.write(checkpoints._live, str(tmp_path), 1)
  checkpoint_files.write(checkpoints._live, str(tmp_path), 1)
  flip_a_byte(tmp_path / "ckpt-2.index")
  again, restored = make(tmp_path, keep=1)
  assert restored.restore() == 2 and restored.latest_step == 1
  restored.discard_later()
  assert restored.best is None and steps_there(tmp_path) == [1]
  assert (tmp_path / "ckpt-2.index.damaged").exists()


def test_what_is_no_damage_is_not_taken_for_it(tmp_path, monkeypatch):
  model, checkpoints = make(tmp_path)
  checkpoints.save()
  checkpoints.wait()

  def read(path):
    raise tf.errors.UnavailableError(None, None, "the network")

  monkeypatch.setattr(checkpoints._live, "read", read)
  with pytest.raises(tf.errors.UnavailableError):
    checkpoints.restore()


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(tmp_path, part, caplog):
  model, checkpoints = make(tmp_path)
  for offset in range(2):
    train(model, 1, offset)
    checkpoints.save()
  checkpoints.wait()
  flip_a_byte(tmp_path / f"ckpt-2.{part}")
  again, restored = make(tmp_path)
  assert restored.restore() == 1 == restored.latest_step
  assert "ckpt-2 is damaged" in caplog.text
  train(again, 1, 1)
  restored.save()  # in the place of the damaged one
  restored.wait()
  last, checkpoints = make(tmp_path)
  assert checkpoints.restore() == 2 == checkpoints.latest_step
  for a, b in zip(model.network.weights, last.network.weights):
    np.testing.assert_array_equal(a, b)


def test_a_checkpoint_that_is_not_there_is_a_damaged_one(tmp_path):
  model, checkpoints = make(tmp_path)
  for offset in range(2):
    train(model, 1, offset)
    checkpoints.save()
  checkpoints.wait()
  (tmp_path / "ckpt-2.data-00000-of-00001").unlink()
  assert make(tmp_path)[1].restore() == 1
  (tmp_path / "ckpt-1.index").unlink()
  with pytest.raises(UserError, match="none of the 1 checkpoints in .* can be"):
    make(tmp_path)[1].restore()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  model, checkpoints = make(tmp_path)
  checkpoints.save()
  checkpoints.wait()
  _, other = make(tmp_path, classes=5)
  with pytest.raises(UserError, match="does not fit this network"):
    other.restore()


@pytest.mark.parametrize("missing", ["averages", "optimizer", "run"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, missing):
  _, whole = make(tmp_path)
  parts = {k: v for k, v in whole._variables.items() if k != missing}
  checkpoint_files.write(tf.train.Checkpoint(**parts), str(tmp_path), 7)
  with pytest.raises(UserError, match="does not fit this network"):
    make(tmp_path)[1].restore()
