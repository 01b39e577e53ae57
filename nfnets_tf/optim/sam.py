"""Sharpness-aware minimization (SAM): the perturbation of the weights.

Foret et al. 2020 (arXiv 2010.01412); Brock et al. 2021, appendix A.4, has the
forms with which NFNets were trained. `train.train_step` runs the two passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.ops.replicas import assign_here
from nfnets_tf.ranges import accepts, built, integer, number, one_of, optional

SCOPES = ("micro_batch", "replica", "global")
PERTURBATION = optional(built("@sam.SAM()"))  # of a `Classifier`


@keras.saving.register_keras_serializable(package="nfnets_tf")
@accepts(
  rho=number(0),
  scope=one_of(*SCOPES),
  ascent_fraction=number(above=0, most=1),
  every=integer(1),
)
class SAM:
  """The perturbation of SAM, for a `Classifier`.

  The gradient of a step is taken at w + rho * g / |g|, where g is the gradient
  of the same examples at the weights w and |g| one norm over all trainable
  weights (Foret et al. 2020, equations 2 and 3). Clipping, decay and momentum
  apply after that, and see neither g nor the perturbation.

  Args:
    rho: L2 norm of the perturbation, >= 0; the NFNet paper fine-tunes with
      0.05.
    scope: the examples that share one perturbation: "replica", those of one
      device, not synchronized, as published; "global", the whole batch;
      "micro_batch", each of the classifier's `micro_batches`, by which one
      device mimics many.
    ascent_fraction: fraction of those examples from which g is computed, in
      (0, 1]. With 0.2 a step costs about 1.2 plain ones, and is as good as with
      all (Brock et al. 2021, appendix A.4).
    every: steps from one perturbed step to the next, >= 1; the others are
      plain.

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
    self.rho = rho
    self.scope = scope
    self.ascent_fraction = ascent_fraction
    self.every = every

  @property
  def passes(self) -> float:
    """Mean cost of a step in plain steps, by the examples computed."""
    return 1.0 + self.ascent_fraction / self.every

  def ascent_examples(self, examples):
    """Returns the number of examples of the first pass.

    Args:
      examples: of the second pass, an int or an int32 scalar tensor.

    Returns:
      The same type, from 1 to `examples`; 0 only for a tensor of 0.
    """
    if isinstance(examples, int):
      return max(1, round(self.ascent_fraction * examples))
    exact = self.ascent_fraction * tf.cast(examples, tf.float32)
    rounded = tf.maximum(1, tf.cast(tf.round(exact), tf.int32))
    return tf.minimum(rounded, examples)

  def active_at(self, step: tf.Tensor) -> tf.Tensor | None:
    """Returns whether a step is perturbed, a scalar bool; None if all are.

    Args:
      step: number of the step, an integer scalar.
    """
    return None if self.every == 1 else step % self.every == 0

  def perturb(
    self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor]
  ) -> list[tf.Tensor]:
    """Adds the perturbation to this replica's copy of the weights.

    To be called in a replica context.

    Args:
      variables: the trainable weights.
      gradients: g, parallel to `variables` and of the same shapes; only its
        direction matters.

    Returns:
      The weights before the perturbation, of the same shapes, for `restore`.
    """
    # A gradient of zeros, as of a step that is not perturbed, moves nothing.
    norm = tf.linalg.global_norm(gradients)
    scale = tf.math.divide_no_nan(tf.cast(self.rho, norm.dtype), norm)
    weights = [variable.read_value() for variable in variables]
    for variable, weight, gradient in zip(variables, weights, gradients):
      assign_here(variable, weight + tf.cast(scale, weight.dtype) * gradient)
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
    """Builds the object from the result of `get_config`."""
    return cls(**config)


def restore(
  variables: Sequence[tf.Variable], weights: Sequence[tf.Tensor]
) -> None:
  """Restores this replica's copy of the weights, bit for bit.

  Args:
    variables: the trainable weights.
    weights: the result of `SAM.perturb`, of the same shapes.
  """
  for variable, weight in zip(variables, weights):
    assign_here(variable, weight)
