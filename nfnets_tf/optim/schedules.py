"""Learning rate schedules, and the step counts that they need."""

from collections.abc import Mapping

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.ranges import STEPS, accepts, integer, mapping, number


@accepts(peak=number(0), warmup_steps=integer(0), total_steps=STEPS)
def warmup_cosine(
  *, peak: float, warmup_steps: int, total_steps: int
) -> keras.optimizers.schedules.CosineDecay:
  """Returns a linear warm-up from zero, followed by a cosine to zero.

  At step t of T with w steps of warm-up (Brock et al. 2021, appendix A.1),

    t < w:  peak * t / w
    else:   peak * (1 + cos(pi * (t - w) / (T - w))) / 2

  Args:
    peak: the rate at the end of the warm-up, >= 0.
    warmup_steps: w, from 0 to T - 1.
    total_steps: T; the rate of later steps is 0.

  Raises:
    UserError: if the warm-up is not shorter than the run, or a number is out of
      range.
  """
  if not 0 <= warmup_steps < total_steps:
    raise UserError(
      f"warmup_steps = {warmup_steps} does not fit total_steps ="
      f" {total_steps}; expected a warm-up shorter than the run: lower"
      " warmup_steps or raise EPOCHS."
    )
  if warmup_steps == 0:  # Keras would divide by it
    return keras.optimizers.schedules.CosineDecay(float(peak), total_steps)
  return keras.optimizers.schedules.CosineDecay(
    0.0,  # an integer would make the rate one
    total_steps - warmup_steps,
    warmup_target=float(peak),
    warmup_steps=warmup_steps,
  )


@accepts(epochs=number(above=0), num_examples=integer(1), batch_size=integer(1))
def steps_for_epochs(
  *, epochs: float, num_examples: int, batch_size: int
) -> int:
  """Returns the number of steps of a run, `epochs` times `num_examples` images.

  Images that are computed count: with repeated augmentation the run makes fewer
  passes over the examples, at the same cost (scaling paper, footnote 4).

  Args:
    epochs: passes over the examples without repeated augmentation, > 0.
    num_examples: of the training split.
    batch_size: images per step.

  Raises:
    UserError: if that is less than one step, or a number is out of range.
  """
  steps = round(epochs * num_examples / batch_size)
  if steps < 1:
    raise UserError(
      f"{epochs} epochs of {num_examples:,} examples are less than one batch"
      f" of {batch_size:,}; raise EPOCHS or lower BATCH_SIZE."
    )
  return steps


@accepts(fraction=number(0, 1), total_steps=STEPS)
def fraction_of_steps(*, fraction: float, total_steps: int) -> int:
  """Returns a fraction of `total_steps`, such as a warm-up, in whole steps."""
  return round(fraction * total_steps)


@accepts(epochs=number(above=0), table=mapping(number(0)))
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
      f"the table of tuned learning rates has no entry for VARIANT ="
      f" {variant!r} at EPOCHS = {epochs} ({known}); bind PEAK_LR to a number."
    )
  return table[variant, epochs]
