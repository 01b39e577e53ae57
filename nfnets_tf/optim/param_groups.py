"""Parameter groups: how the optimizer treats each variable.

AGC exempts only the classifier's kernel, and weight decay applies only to
kernels. A layer sets the group of its variables where it creates them; nothing
is decided by matching names. A variable without a group (of a user's layer) is
a kernel if it has two axes or more. Fine-tuning adds two things by stage of the
network: a multiplier on the learning rate, and layers that are frozen.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Mapping, Sequence

import tensorflow as tf

from nfnets_tf.errors import UserError, require
from nfnets_tf.keras_api import keras

# Attributes of the variable itself, since a copy of a model makes new ones.
_GROUP = "_nfnets_group"
_LR_MULTIPLIER = "_nfnets_lr_multiplier"
_FROZEN_HERE = "_frozen_by_classifier"

HEAD = "classifier"
BACKBONE = "backbone"

Stages = Mapping[str, Sequence[keras.layers.Layer]]


class ParamGroup(enum.Enum):
  """Groups of variables by whether AGC and weight decay apply."""

  KERNEL = "kernel"  # clipped and decayed
  HEAD_KERNEL = "head_kernel"  # decayed only
  VECTOR = "vector"  # clipped only: gains, biases, skip gains

  @property
  def clipped(self) -> bool:
    """True if AGC applies."""
    return self is not ParamGroup.HEAD_KERNEL

  @property
  def decayed(self) -> bool:
    """True if weight decay applies."""
    return self is not ParamGroup.VECTOR


def set_group(variable: tf.Variable, group: ParamGroup) -> tf.Variable:
  """Assigns `variable` to a group and returns it."""
  setattr(variable, _GROUP, group)
  return variable


def group_of(variable: tf.Variable) -> ParamGroup:
  """Returns the variable's group, by its rank if none was set."""
  by_rank = ParamGroup.KERNEL if variable.shape.rank >= 2 else ParamGroup.VECTOR
  return getattr(variable, _GROUP, by_rank)


def set_lr_multiplier(variable: tf.Variable, multiplier: float) -> tf.Variable:
  """Sets the learning rate multiplier of `variable` and returns it."""
  setattr(variable, _LR_MULTIPLIER, multiplier)
  return variable


def lr_multiplier(variable: tf.Variable) -> float:
  """Returns the multiplier on the variable's learning rate, 1 by default."""
  return getattr(variable, _LR_MULTIPLIER, 1.0)


class GroupedOptimizer(keras.optimizers.Optimizer):
  """Base of the optimizers that honor groups and learning rate multipliers.

  Attributes:
    clipping: AGC's lambda, None without clipping.
    clipping_eps: AGC's floor under the norm of a unit's weights.
    skips_nonfinite: whether a step with a gradient that is not finite changes
      no variable but `iterations`.
    keeps_zeros: whether a weight that is zero stays zero without a gradient if
      its `slots` are zero.
  """

  clipping: float | None = None
  clipping_eps = 1e-3
  skips_nonfinite = False
  keeps_zeros = False

  def slots(self, variable: tf.Variable) -> list[tf.Variable]:
    """Returns the variables that follow one weight, each of its shape."""
    raise NotImplementedError

  def clips(self, variable: tf.Variable) -> bool:
    """Returns whether a variable's gradient, of any shape, is clipped."""
    return self.clipping is not None and group_of(variable).clipped


def check_lr_multipliers(
  optimizer: keras.optimizers.Optimizer, variables: Sequence[tf.Variable]
) -> None:
  """Raises a UserError if an optimizer would ignore a multiplier.

  Args:
    optimizer: that will update the variables.
    variables: the trainable variables, of any shape.
  """
  if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
    optimizer = optimizer.inner_optimizer
  if isinstance(optimizer, GroupedOptimizer):
    return
  if any(lr_multiplier(variable) != 1 for variable in variables):
    name = type(optimizer).__name__
    raise UserError(
      f"{name} ignores learning rate multipliers, and Classifier.layer_decay or"
      f" set_lr_multiplier has set some; use nfnets_tf.AGC({name}(...)) or"
      " nfnets_tf.SGD."
    )


def restore_saved_state(
  optimizer: keras.optimizers.Optimizer, saved: keras.optimizers.Optimizer
) -> None:
  """Sets an optimizer's variables to those of a SavedModel, which Keras drops.

  Args:
    optimizer: built, of the same class and for the same weights.
    saved: what Keras revives of the optimizer in the SavedModel.
  """
  values = getattr(saved, "optimizer", saved).variables  # AGC's are inside it
  variables, shapes = optimizer.variables, None
  if isinstance(values, list):  # a legacy optimizer's is a method
    shapes = [value.shape for value in values]
  if shapes != [variable.shape for variable in variables]:
    warnings.warn(
      f"the SavedModel does not hold the state of {type(optimizer).__name__},"
      " which starts anew; a .keras file holds it.",
      stacklevel=2,
    )
    return
  for variable, value in zip(variables, values):
    variable.assign(value)


def freeze(stages: Stages, frozen: Sequence[str] | str) -> None:
  """Freezes stages of a network.

  Stages that an earlier call froze become trainable again unless they are
  named; layers that a user froze by `layer.trainable = False` stay frozen.

  Args:
    stages: {name: layers} in the order of the data, the head last;
      `models.nfnet.layers_by_stage` gives those of an `NFNet`, {} of another
      network.
    frozen: names of stages, or "backbone": all but the classifier.

  Raises:
    UserError: if there is no such stage, or nothing would be trained.
  """
  for layer in [layer for layers in stages.values() for layer in layers]:
    if getattr(layer, _FROZEN_HERE, False):
      layer.trainable = True
      setattr(layer, _FROZEN_HERE, False)
  require(
    isinstance(frozen, (str, Sequence)),
    "Classifier.frozen",
    frozen,
    f"names of stages, such as ['stem', 'stage1'], or {BACKBONE!r}",
  )
  if not frozen:
    return
  for name in _stage_names(stages, frozen):
    for layer in stages[name]:
      if layer.trainable:
        layer.trainable = False
        setattr(layer, _FROZEN_HERE, True)


def _stage_names(stages: Stages, frozen: Sequence[str] | str) -> list[str]:
  if frozen == BACKBONE:
    frozen = [name for name in stages if name != HEAD]
  names = [frozen] if isinstance(frozen, str) else list(frozen)
  if unknown := [name for name in names if name not in stages]:
    known = ", ".join(map(repr, (*stages, BACKBONE)))
    raise UserError(
      f"Classifier.frozen names {unknown[0]!r}, which the network does not"
      " have;"
      + (
        f" expected some of {known}."
        if stages
        else " expected an NFNet: set layer.trainable = False in another model."
      )
    )
  if set(stages) <= set(names):
    raise UserError(
      "Classifier.frozen names every stage of the network, so nothing would be"
      " trained; leave one out."
    )
  return names


def set_layer_decay(stages: Stages, layer_decay: float) -> None:
  """Sets the learning rate multiplier of every stage of a network.

  The head learns at the full rate, the stage before it at `layer_decay` times
  that, and so on to the stem: at `layer_decay` to the 6th in an `NFNet`.

  Args:
    stages: see `freeze`.
    layer_decay: in (0, 1]; 1 sets all multipliers to 1.

  Raises:
    UserError: if the decay is out of range, or the network has no stages.
  """
  name = "Classifier.layer_decay"
  require(0 < layer_decay <= 1, name, layer_decay, "a number in (0, 1]")
  if layer_decay != 1 and not stages:
    raise UserError(
      f"{name} = {layer_decay} needs an NFNet, whose stages are known; call"
      " param_groups.set_lr_multiplier on the variables of another network."
    )
  for distance, layers in enumerate(reversed(stages.values())):
    for variable in [v for layer in layers for v in layer.variables]:
      set_lr_multiplier(variable, layer_decay**distance)
