import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.ops.errors import UserError
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier


def make(directory, classes=3, keep=2):
  model = Classifier(NFNet("femto", classes))
  model.compile(SGD(0.1))
  return model, Checkpoints(str(directory), model, keep=keep)


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
  train(model, 2, offset=3)

  again, restored = make(tmp_path)
  assert restored.restore() == 3 == restored.latest_step == restored.step
  train(again, 2, offset=3)
  for a, b in zip(
    [*model.network.weights, *model.averages, *model.optimizer.variables],
    [*again.network.weights, *again.averages, *again.optimizer.variables],
  ):
    np.testing.assert_array_equal(a, b)


def test_only_the_newest_stay(tmp_path):
  model, checkpoints = make(tmp_path)
  for offset in range(3):
    train(model, 1, offset)
    checkpoints.save()
  names = {path.name for path in tmp_path.glob("*.index")}
  assert names == {"ckpt-2.index", "ckpt-3.index"}


def flip_a_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(tmp_path, part, caplog):
  model, checkpoints = make(tmp_path)
  for offset in range(2):
    train(model, 1, offset)
    checkpoints.save()
  flip_a_byte(tmp_path / f"ckpt-2.{part}")
  again, restored = make(tmp_path)
  assert restored.restore() == 1 == restored.latest_step
  assert "ckpt-2 is damaged" in caplog.text
  train(again, 1, 1)
  restored.save()  # in the place of the damaged one
  last, checkpoints = make(tmp_path)
  assert checkpoints.restore() == 2 == checkpoints.latest_step
  for a, b in zip(model.network.weights, last.network.weights):
    np.testing.assert_array_equal(a, b)


def test_a_checkpoint_that_is_not_there_is_a_damaged_one(tmp_path):
  model, checkpoints = make(tmp_path)
  for offset in range(2):
    train(model, 1, offset)
    checkpoints.save()
  (tmp_path / "ckpt-2.data-00000-of-00001").unlink()
  assert make(tmp_path)[1].restore() == 1
  (tmp_path / "ckpt-1.index").unlink()
  with pytest.raises(UserError, match="all 2 checkpoints are damaged.*ckpt-2"):
    make(tmp_path)[1].restore()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  model, checkpoints = make(tmp_path)
  checkpoints.save()
  _, other = make(tmp_path, classes=5)
  with pytest.raises(UserError, match="does not fit this network"):
    other.restore()


def test_a_checkpoint_without_the_averages_is_refused(tmp_path):
  model, _ = make(tmp_path)
  tf.train.CheckpointManager(
    tf.train.Checkpoint(network=model.network, optimizer=model.optimizer),
    str(tmp_path),
    max_to_keep=1,
  ).save(checkpoint_number=7)
  _, checkpoints = make(tmp_path)
  with pytest.raises(UserError, match="does not fit this network"):
    checkpoints.restore()
