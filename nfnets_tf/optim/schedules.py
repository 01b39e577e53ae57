"""Learning rates as functions of the step."""

import math
from collections.abc import Mapping

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError


@keras.saving.register_keras_serializable(package="nfnets_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
  """Linear warm-up from zero, then a cosine to zero.

  At step t of T with w steps of warm-up (Brock et al. 2021, appendix A.1),

    t < w:  peak * t / w
    else:   peak * (1 + cos(pi * (t - w) / (T - w))) / 2

  Args:
    peak: the rate at the end of the warm-up.
    warmup_steps: w.
    total_steps: T; later steps keep the last rate.

  Raises:
    UserError: if the warm-up is not shorter than the run.
  """

  def __init__(self, *, peak: float, warmup_steps: int, total_steps: int):
    if not 0 <= warmup_steps < total_steps:
      raise UserError(
        f"warmup_steps = {warmup_steps} does not fit total_steps ="
        f" {total_steps}; the warm-up must be shorter than the run: lower"
        " warmup_steps or raise EPOCHS."
      )
    self.peak = float(peak)
    self.warmup_steps = warmup_steps
    self.total_steps = total_steps

  def __call__(self, step):
    step = tf.cast(step, tf.float32)
    warmup = tf.cast(self.warmup_steps, tf.float32)
    rest = tf.cast(self.total_steps - self.warmup_steps, tf.float32)
    progress = tf.clip_by_value((step - warmup) / rest, 0.0, 1.0)
    cosine = 0.5 * self.peak * (1.0 + tf.cos(math.pi * progress))
    return tf.where(
      step < warmup, self.peak * step / tf.maximum(warmup, 1.0), cosine
    )

  def get_config(self):
    """Returns the constructor's arguments."""
    return {
      "peak": self.peak,
      "warmup_steps": self.warmup_steps,
      "total_steps": self.total_steps,
    }


def steps_for_epochs(
  *, epochs: float, num_examples: int, batch_size: int
) -> int:
  """Returns the steps that train on `epochs` times `num_examples` images.

  It counts what is computed: with repeated augmentation the examples are read
  less often, at the same cost (scaling paper, footnote 4).

  Args:
    epochs: passes over the examples, if each step's images are different ones.
    num_examples: of the training split.
    batch_size: images a step.
  """
  if batch_size < 1:
    raise UserError(
      f"BATCH_SIZE = {batch_size} cannot be used; bind it to at least 1."
    )
  steps = round(epochs * num_examples / batch_size)
  if steps < 1:
    raise UserError(
      f"{epochs} epochs of {num_examples:,} examples are less than one batch"
      f" of {batch_size:,}; raise EPOCHS or lower BATCH_SIZE."
    )
  return steps


def share_of_steps(*, share: float, total_steps: int) -> int:
  """Returns `share` of `total_steps`, such as a warm-up, in whole steps."""
  return round(share * total_steps)


def tuned_peak(
  *, variant: str, epochs: float, table: Mapping[tuple[str, float], float]
) -> float:
  """Looks up the tuned peak rate of a model at an epoch budget.

  Args:
    variant: name of the NFNet.
    epochs: the budget.
    table: {(variant, epochs): rate}.

  Raises:
    UserError: if the table has no such entry.
  """
  if (variant, epochs) not in table:
    budgets = sorted(budget for name, budget in table if name == variant)
    known = f"it has {variant} at {budgets}" if budgets else "not this variant"
    raise UserError(
      f"the table of tuned learning rates has none for VARIANT = {variant!r} at"
      f" EPOCHS = {epochs} ({known}); bind PEAK_LR to a number."
    )
  return table[variant, epochs]
