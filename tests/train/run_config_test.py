import dataclasses
import types

import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.train.run_config import DataConfig, Schedule

SCHEDULE = Schedule(
  total_steps=100,
  steps_per_execution=2,
  log_every=4,
  evaluate_every=8,
  checkpoint_every=12,
  checkpoints_to_keep=1,
)
DATA = DataConfig(
  train_split=types.SimpleNamespace(),
  heldout_split=types.SimpleNamespace(),
  prepare=None,
  num_classes=4,
  num_examples=50,
  batch_size=8,
  shuffle_buffer=20,
  max_invalid_fraction=0.01,
  num_data_streams=None,
)


@pytest.mark.parametrize(
  "name, value, expected",
  [
    ("total_steps", 0, "an integer from 1 to"),
    ("checkpoints_to_keep", 1.5, "an integer >= 1"),
    ("log_every", 5, "a multiple of run_config.Schedule.steps_per_execution"),
    ("evaluate_every", 6, "a multiple of run_config.Schedule.log_every = 4"),
    ("checkpoint_every", 6, "a multiple of run_config.Schedule.log_every = 4"),
  ],
)
def test_refuses_invalid_intervals(name, value, expected):
  with pytest.raises(UserError, match=f"Schedule.{name} = {value} is .*") as e:
    dataclasses.replace(SCHEDULE, **{name: value})
  assert expected in str(e.value)


@pytest.mark.parametrize(
  "name, value",
  [
    ("num_classes", 0),
    ("batch_size", "8"),
    ("max_invalid_fraction", 2),
    ("num_data_streams", 0),
  ],
)
def test_refuses_data_numbers_out_of_range(name, value):
  with pytest.raises(UserError, match=f"run_config.DataConfig.{name} = "):
    dataclasses.replace(DATA, **{name: value})
