import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.train.run_state import RunState


def test_a_run_begins_at_its_first_batch():
  state = RunState(seed=7)
  assert {name: int(v) for name, v in state.variables().items()} == {
    "seed": 7,
    "data_offset": 0,
    "interval_begin": 0,
  }
  state.check()


def test_all_of_it_comes_back_from_a_checkpoint(tmp_path):
  state = RunState(seed=7)
  state.data_offset.assign(2**40)
  state.interval_begin.assign(12)
  path = tf.train.Checkpoint(**state.variables()).write(str(tmp_path / "x"))
  again = RunState(seed=7)
  checkpoint = tf.train.Checkpoint(**again.variables())
  checkpoint.read(path).assert_consumed()
  again.check()
  assert int(again.data_offset) == 2**40 and int(again.interval_begin) == 12


def test_what_was_restored_of_another_seed_is_refused(tmp_path):
  variables = RunState(seed=7).variables()
  path = tf.train.Checkpoint(**variables).write(str(tmp_path / "x"))
  state = RunState(seed=8)
  tf.train.Checkpoint(**state.variables()).read(path).assert_consumed()
  with pytest.raises(UserError, match="SEED = 7, but SEED = 8; use that seed"):
    state.check()


def test_it_lies_on_the_host_whatever_the_devices():
  with tf.device("CPU:1"):
    state = RunState(seed=7)
  for variable in state.variables().values():
    assert variable.device.endswith("CPU:0") and variable.dtype == tf.int64
    assert not variable.trainable
