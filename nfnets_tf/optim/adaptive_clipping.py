"""Adaptive gradient clipping (AGC), Brock et al. 2021, section 4.

`AGC` applies `unitwise.clip_unitwise` in front of any Keras optimizer;
`nfnets_tf.SGD` uses it inside its update.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Union

import tensorflow as tf

from nfnets_tf.errors import UserError, refuse_keras3, require
from nfnets_tf.keras_api import keras
from nfnets_tf.ops.replicas import assign_here
from nfnets_tf.optim.param_groups import (
  GroupedOptimizer,
  group_of,
  lr_multiplier,
)
from nfnets_tf.optim.unitwise import StepNorms, clip_unitwise
from nfnets_tf.ranges import (
  Range,
  accepts,
  declare,
  flag,
  function,
  integer,
  number,
  optional,
)


def _hyperparameter_ranges() -> dict[str, Range]:
  """Returns {parameter: its range} of Keras' optimizers."""
  decay, flags = number(0, below=1), "amsgrad centered nesterov use_ema"
  return {
    **dict.fromkeys("beta_1 beta_2 momentum rho ema_momentum".split(), decay),
    **dict.fromkeys(("learning_rate", "epsilon"), number(0)),
    "weight_decay": optional(number(0)),
    **dict.fromkeys(
      ("clipnorm", "clipvalue", "global_clipnorm"), optional(number(above=0))
    ),
    "ema_overwrite_frequency": optional(integer(1)),
    "initial_accumulator_value": number(0),
    **dict.fromkeys(flags.split(), flag()),
  }


for _optimizer in vars(keras.optimizers).values():
  if inspect.isclass(_optimizer) and issubclass(
    _optimizer, keras.optimizers.Optimizer
  ):
    declare(_optimizer, **_hyperparameter_ranges())

Exclude = Union[
  Callable[[tf.Variable], bool], Sequence[Union[tf.Variable, str]], None
]


@keras.saving.register_keras_serializable(package="nfnets_tf")
@accepts(clipping=optional(number(above=0)), eps=number(0))
class AGC(GroupedOptimizer):
  """Clips gradients unit by unit, then hands them to another optimizer.

    model.compile(AGC(keras.optimizers.AdamW(1e-3), clipping=0.01), "mse")

  The gradient is summed over replicas first, so that the threshold applies to
  the whole batch. Everything else is the wrapped optimizer's: its rule, its
  learning rate or schedule, its variables and `iterations`. Learning rate
  multipliers (`param_groups.set_lr_multiplier`, `Classifier.layer_decay`) scale
  the wrapped optimizer's whole update of a variable, decoupled decay included.
  Gradients that are not finite are passed on; a `Classifier` replaces them by
  zeros.

  Args:
    optimizer: any Keras optimizer, or a legacy one such as the LAMB of
      tensorflow-addons; not `nfnets_tf.SGD`, which clips already.
    clipping: lambda, the largest ratio of gradient norm to weight norm of a
      unit, > 0; None turns clipping off.
    eps: floor under the norm of a unit's weights, >= 0.
    exclude: variables that are not clipped: a function of a variable, or a list
      of variables and of regular expressions that are searched in a variable's
      name. None excludes the kernel of a `ClassifierHead`, and [] nothing.
    name: of the optimizer.

  Raises:
    UserError: if an argument is invalid.
  """

  def __init__(
    self,
    optimizer: keras.optimizers.Optimizer | keras.optimizers.legacy.Optimizer,
    clipping: float | None = 0.01,
    eps: float = 1e-3,
    exclude: Exclude = None,
    name: str = "AGC",
  ):
    _check_wrappable(optimizer)
    super().__init__(name=name)
    self.optimizer = optimizer
    self.clipping = clipping
    self.clipping_eps = eps
    self.exclude = exclude
    self._legacy = isinstance(optimizer, keras.optimizers.legacy.Optimizer)
    self.iterations = optimizer.iterations

  def clips(self, variable: tf.Variable) -> bool:
    """Returns whether a variable's gradient is clipped."""
    return self.clipping is not None and not self._excludes(variable)

  def _excludes(self, variable: tf.Variable) -> bool:
    if self.exclude is None:
      return not group_of(variable).clipped
    if callable(self.exclude):
      return bool(self.exclude(variable))
    return any(
      re.search(entry, variable.name) is not None
      if isinstance(entry, str)
      else entry is variable
      for entry in self.exclude
    )

  def build(self, var_list):
    """Creates the wrapped optimizer's variables for `var_list`."""
    if self._legacy:  # it has no public method for this
      self.optimizer._create_all_weights(list(var_list))
    else:
      self.optimizer.build(var_list)

  def apply_gradients(
    self,
    grads_and_vars,
    name=None,
    skip_gradients_aggregation=False,
    *,
    norms: StepNorms | None = None,
    **kwargs,
  ):
    """Applies a step; see `keras.optimizers.Optimizer.apply_gradients`.

    Args:
      grads_and_vars: pairs of a gradient (or None) and its variable, of the
        same shape.
      name: of the wrapped optimizer's name scope.
      skip_gradients_aggregation: whether the gradients are already summed over
        replicas.
      norms: of these gradients, if they are summed and measured already.
      **kwargs: `experimental_aggregate_gradients`, its legacy opposite.
    """
    pairs = list(grads_and_vars)
    aggregate = kwargs.pop("experimental_aggregate_gradients", True)
    if aggregate and not skip_gradients_aggregation:
      pairs = self.aggregate_gradients(pairs)
    if norms is None:
      pairs = [(self._clipped(g, v), v) for g, v in pairs]
    else:
      pairs = [
        (g if scale is None else g * scale, v)
        for (g, v), scale in zip(pairs, norms.scales)
      ]
    slow = [v for g, v in pairs if g is not None and lr_multiplier(v) != 1]
    before = [variable.read_value() for variable in slow]
    options = (
      {"experimental_aggregate_gradients": False}
      if self._legacy
      else {"skip_gradients_aggregation": True}
    )
    result = self.optimizer.apply_gradients(pairs, name=name, **options)
    for variable, weight in zip(slow, before):
      _scale_update(variable, weight)
    return result

  def _clipped(self, gradient, variable):
    if gradient is None or not self.clips(variable):
      return gradient
    # A sparse gradient becomes dense: units are columns of the whole kernel.
    gradient = tf.convert_to_tensor(gradient)
    weight = tf.cast(variable.read_value(), gradient.dtype)
    return clip_unitwise(
      gradient, weight, clipping=self.clipping, eps=self.clipping_eps
    )

  @property
  def learning_rate(self):
    """The wrapped optimizer's current rate, a scalar variable or tensor."""
    rate = self.optimizer.learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
      return rate(self.iterations)  # legacy optimizers give the schedule
    return rate

  @learning_rate.setter
  def learning_rate(self, learning_rate):
    self.optimizer.learning_rate = learning_rate

  @property
  def variables(self):
    """The wrapped optimizer's variables, `iterations` first."""
    return self.optimizer.weights if self._legacy else self.optimizer.variables

  def set_weights(self, weights):
    """Sets the wrapped optimizer's variables, in the order of `variables`."""
    self.optimizer.set_weights(weights)

  # Keras saves a nested optimizer automatically, except a legacy one.
  def save_own_variables(self, store):
    """Adds the variables that Keras would not save to a file."""
    if self._legacy:
      for index, variable in enumerate(self.variables):
        store[str(index)] = variable.numpy()

  def load_own_variables(self, store):
    """Assigns what `save_own_variables` stored."""
    if self._legacy:
      self.set_weights([store[str(i)] for i in range(len(self.variables))])

  def finalize_variable_values(self, var_list):
    """Ends training, as the wrapped optimizer does."""
    if not self._legacy:
      self.optimizer.finalize_variable_values(var_list)

  def get_config(self):
    """Returns the constructor's arguments, with variables by name."""
    exclude = self.exclude
    if callable(exclude):
      exclude = keras.saving.serialize_keras_object(exclude)
    elif exclude is not None:
      exclude = [
        entry if isinstance(entry, str) else f"^{re.escape(entry.name)}$"
        for entry in exclude
      ]
    return {
      "optimizer": keras.saving.serialize_keras_object(self.optimizer),
      "clipping": self.clipping,
      "eps": self.clipping_eps,
      "exclude": exclude,
      "name": self.name,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Builds the optimizer that `get_config` described."""
    optimizer, exclude = config["optimizer"], config["exclude"]
    # A scope, since Keras prefers its global registry to `custom_objects`, and
    # two libraries register a LAMB under the same name.
    with keras.saving.custom_object_scope(_classes_of(optimizer)):
      optimizer = keras.saving.deserialize_keras_object(
        optimizer, custom_objects
      )
    if isinstance(exclude, dict):
      exclude = keras.saving.deserialize_keras_object(exclude, custom_objects)
    return cls(**{**config, "optimizer": optimizer, "exclude": exclude})


@accepts(
  optimizer=function("@keras_api.keras.optimizers.AdamW"),
  clipping=optional(number(above=0)),
  eps=number(0),
)
def agc(
  learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
  *,
  optimizer: Callable[..., keras.optimizers.Optimizer],
  clipping: float | None = 0.01,
  eps: float = 1e-3,
) -> AGC:
  """Wraps an optimizer that is built later, for configuration files.

  Args:
    learning_rate: of the optimizer, a number or schedule.
    optimizer: called with `learning_rate=`, such as `keras.optimizers.AdamW`.
    clipping: see `AGC`.
    eps: see `AGC`.
  """
  return AGC(optimizer(learning_rate=learning_rate), clipping, eps)


def _check_wrappable(optimizer) -> None:
  refuse_keras3("AGC", optimizer)
  kinds = (keras.optimizers.Optimizer, keras.optimizers.legacy.Optimizer)
  require(
    isinstance(optimizer, kinds),
    "AGC.optimizer",
    optimizer,
    "a Keras optimizer, such as keras.optimizers.AdamW(1e-3)",
  )
  if isinstance(optimizer, GroupedOptimizer):
    raise UserError(
      f"AGC received {type(optimizer).__name__}, which clips already; use it"
      " without AGC."
    )


def _classes_of(config: dict) -> dict[str, type]:
  """Returns {name: class} of a serialized optimizer, if it is known.

  Keras 2.15 does not find AdamW, Lion and registered classes in HDF5 files.
  """
  name, registered = config["class_name"], config.get("registered_name")
  module = config.get("module") or "keras"
  # Files of Keras 2 say "keras.optimizers", which may be the module of Keras 3.
  cls = None
  if module.split(".")[0] not in ("keras", "tf_keras"):
    cls = getattr(sys.modules.get(module), name, None)
  if cls is None and registered:
    cls = keras.saving.get_registered_object(registered)
  if cls is None:
    legacy = config["config"].get("is_legacy_optimizer", True)
    module = keras.optimizers.legacy if legacy else keras.optimizers
    cls = getattr(module, name, None)
  return {key: cls for key in (name, registered) if cls and key}


def _scale_update(variable: tf.Variable, before: tf.Tensor) -> None:
  """Replaces a variable's last update by its multiple; any rule is scaled."""
  multiplier = tf.cast(lr_multiplier(variable), before.dtype)
  value = before + multiplier * (variable.read_value() - before)
  assign_here(variable, value)
