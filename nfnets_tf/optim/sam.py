"""Sharpness-aware minimization (SAM): which perturbation, and how it is made.

Foret et al. 2020 (arXiv 2010.01412); the forms that NFNets were trained with
are in Brock et al. 2021, appendix A.4. `train.train_step` runs the two passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError

SCOPES = ("micro_batch", "replica", "global")


@keras.saving.register_keras_serializable(package="nfnets_tf")
class SAM:
  """How SAM perturbs the weights.

  The step's gradient is taken at w + rho * g / |g| instead of at w, where g is
  the gradient of the same examples at w and |g| one norm over all trainable
  weights (Foret et al. 2020, equations 2 and 3). Clipping, decay and momentum
  come after, and see neither g nor the perturbation.

  Args:
    rho: length of the perturbation, at least 0; the NFNet paper fine-tunes with
      0.05.
    scope: the examples that share one perturbation: "replica", those of one
      device, never synchronised, as published; "global", the whole batch;
      "micro_batch", each of the classifier's `micro_batches`, which is how one
      device mimics many.
    ascent_fraction: share of those examples that g is taken from, in (0, 1].
      With 0.2 a step costs about 1.2 plain ones, as good as with all (Brock et
      al. 2021, appendix A.4).
    every: steps from one perturbed step to the next; the others are plain.

  Raises:
    UserError: if a value is out of range.
  """

  def __init__(
    self,
    rho: float = 0.05,
    *,
    scope: str = "replica",
    ascent_fraction: float = 1.0,
    every: int = 1,
  ):
    if not rho >= 0:
      raise UserError(f"SAM.rho = {rho} cannot be used; bind it to 0 or more.")
    if scope not in SCOPES:
      raise UserError(
        f"SAM.scope = {scope!r} is unknown; expected"
        f" {', '.join(map(repr, SCOPES))}."
      )
    if not 0 < ascent_fraction <= 1:
      raise UserError(
        f"SAM.ascent_fraction = {ascent_fraction} cannot be used; bind it to a"
        " share of the batch above 0 and up to 1."
      )
    if not isinstance(every, int) or every < 1:
      raise UserError(
        f"SAM.every = {every!r} cannot be used; bind it to a whole number of"
        " steps of at least 1."
      )
    self.rho = rho
    self.scope = scope
    self.ascent_fraction = ascent_fraction
    self.every = every

  @property
  def passes(self) -> float:
    """Cost of a step in plain ones, by the examples that are computed."""
    return 1.0 + self.ascent_fraction / self.every

  def ascent_examples(self, examples):
    """Returns how many of `examples`, an integer or a tensor, give g."""
    if isinstance(examples, int):
      return max(1, round(self.ascent_fraction * examples))
    share = self.ascent_fraction * tf.cast(examples, tf.float32)
    few = tf.maximum(1, tf.cast(tf.round(share), tf.int32))
    return tf.minimum(few, examples)

  def active_at(self, step: tf.Tensor) -> tf.Tensor | None:
    """Returns whether a step is perturbed, a bool; None if all steps are."""
    return None if self.every == 1 else step % self.every == 0

  def perturb(
    self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor]
  ) -> list[tf.Tensor]:
    """Moves this replica's copy of the weights along the gradient.

    To be called in a replica context.

    Args:
      variables: the trainable weights.
      gradients: g, parallel to `variables`; only its direction matters.

    Returns:
      The weights as they were, for `restore`.
    """
    # A gradient of zero, or one not taken in this step, moves nothing.
    norm = tf.linalg.global_norm(gradients)
    scale = tf.math.divide_no_nan(tf.cast(self.rho, norm.dtype), norm)
    weights = [variable.read_value() for variable in variables]
    for variable, weight, gradient in zip(variables, weights, gradients):
      _write(variable, weight + tf.cast(scale, weight.dtype) * gradient)
    return weights

  def get_config(self):
    """Returns the constructor's arguments."""
    return {
      "rho": self.rho,
      "scope": self.scope,
      "ascent_fraction": self.ascent_fraction,
      "every": self.every,
    }

  @classmethod
  def from_config(cls, config):
    """Builds the object that `get_config` described."""
    return cls(**config)


def restore(
  variables: Sequence[tf.Variable], weights: Sequence[tf.Tensor]
) -> None:
  """Gives this replica's copy of the variables their values, bit for bit."""
  for variable, weight in zip(variables, weights):
    _write(variable, weight)


def _write(variable: tf.Variable, value: tf.Tensor) -> None:
  # `assign` would reduce over replicas; the handle is this replica's own.
  tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
