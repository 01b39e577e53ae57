import math

import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.optim import schedules


def naive(step, peak, warmup, total):
  if step < warmup:
    return peak * step / warmup
  share = min(1.0, (step - warmup) / (total - warmup))
  return peak * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("warmup", [0, 10])
def test_warmup_cosine_equals_its_formula(warmup):
  schedule = schedules.warmup_cosine(
    peak=1.6, warmup_steps=warmup, total_steps=50
  )
  compiled = tf.function(schedule)
  for step in range(60):
    expected = naive(step, 1.6, warmup, 50)
    assert float(schedule(step)) == pytest.approx(expected, abs=1e-6)
    step = tf.constant(step, tf.int64)  # as an optimizer counts
    assert float(compiled(step)) == pytest.approx(expected, abs=1e-6)


def test_survives_serialization():
  schedule = schedules.warmup_cosine(peak=1.6, warmup_steps=3, total_steps=9)
  config = keras.optimizers.schedules.serialize(schedule)
  again = keras.optimizers.schedules.deserialize(config)
  assert again.get_config() == schedule.get_config()


def test_warmup_as_long_as_the_run_is_refused():
  with pytest.raises(UserError, match="warmup_steps = 9 .* total_steps = 9"):
    schedules.warmup_cosine(peak=1.0, warmup_steps=9, total_steps=9)


def test_steps_for_epochs():
  def steps(epochs):
    return schedules.steps_for_epochs(
      epochs=epochs, num_examples=4_000_000_000, batch_size=4_096
    )

  assert steps(8) == 7_812_500
  assert steps(0.25) == 244_141


def test_fraction_of_steps():
  assert schedules.fraction_of_steps(fraction=0.05, total_steps=898) == 45


def test_run_shorter_than_a_step_is_refused():
  with pytest.raises(UserError, match="less than one batch of 64"):
    schedules.steps_for_epochs(epochs=0.1, num_examples=100, batch_size=64)
  with pytest.raises(UserError, match="batch_size = 0"):
    schedules.steps_for_epochs(epochs=0.1, num_examples=100, batch_size=0)


def test_tuned_peak():
  table = {("F0", 1): 1.6, ("F0", 8): 0.8}
  look_up = schedules.tuned_peak
  assert look_up(variant="F0", epochs=8, table=table) == 0.8
  with pytest.raises(UserError, match=r"EPOCHS = 3 \(it has F0 at \[1, 8\]\)"):
    look_up(variant="F0", epochs=3, table=table)
  with pytest.raises(UserError, match="VARIANT = 'F2'.*not this variant"):
    look_up(variant="F2", epochs=8, table=table)
