import types

import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.train.recovery import (
  EndOnNotFinite,
  NotFinite,
  Recovery,
  Rollback,
  Rollbacks,
)

FIRST = Rollback(at_step=20, to_step=8, data_offset=12, batches=(17, 20))
SECOND = Rollback(at_step=30, to_step=8, data_offset=34, batches=(40, 42))


def test_values_out_of_range():
  with pytest.raises(UserError, match="Recovery.in_a_row = 0"):
    Recovery(in_a_row=0, rollbacks=1)
  with pytest.raises(UserError, match="Recovery.rollbacks = -1"):
    Recovery(in_a_row=1, rollbacks=-1)


def test_what_was_written_is_read_and_only_the_writer_writes(tmp_path):
  path = tmp_path / "rollbacks.json"
  Rollbacks(str(path), writes=False).add(FIRST)
  assert not path.exists()
  for rollback in (FIRST, SECOND):
    Rollbacks(str(path)).add(rollback)
  assert Rollbacks(str(path)).all == [FIRST, SECOND]


@pytest.mark.parametrize(
  "step, offset, left_behind, goes_on_with",
  [
    (4, 0, False, 0),  # from before
    (8, 0, False, 34),  # returned to
    (16, 0, True, None),  # of the first way
    (16, 12, True, None),  # of the way behind the first return
    (16, 34, False, 34),  # of the last one
  ],
)
def test_from_which_checkpoints_it_goes_on(
  tmp_path, step, offset, left_behind, goes_on_with
):
  rollbacks = Rollbacks(str(tmp_path / "none"))
  assert not rollbacks.left_behind(step, offset)
  assert rollbacks.offset_at(step, offset) == offset
  for rollback in (FIRST, SECOND):
    rollbacks.add(rollback)
  assert rollbacks.left_behind(step, offset) is left_behind
  if not left_behind:
    assert rollbacks.offset_at(step, offset) == goes_on_with


def test_returns_to_steps_that_are_lost_are_forgotten(tmp_path):
  path = str(tmp_path / "rollbacks.json")
  rollbacks = Rollbacks(path)
  later = SECOND._replace(to_step=50)
  for rollback in (FIRST, later):
    rollbacks.add(rollback)
  rollbacks.forget_later(50)
  assert Rollbacks(path).all == [FIRST, later]
  rollbacks.forget_later(40)
  assert Rollbacks(path).all == rollbacks.all == [FIRST]


def test_it_ends_when_there_are_enough_in_a_row():
  guard = types.SimpleNamespace(
    consecutive_skips=tf.Variable(2, dtype=tf.int64)
  )
  callback = EndOnNotFinite(guard, 3)
  callback.on_train_batch_end(0)
  guard.consecutive_skips.assign(3)
  with pytest.raises(NotFinite):
    callback.on_train_batch_end(0)
