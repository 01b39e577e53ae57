"""SGD with Nesterov momentum, adaptive gradient clipping and coupled decay."""

from __future__ import annotations

import functools

import tensorflow as tf

from nfnets_tf.errors import refuse_keras3, require
from nfnets_tf.keras_api import keras
from nfnets_tf.ops import fusion
from nfnets_tf.ops.finite import all_finite
from nfnets_tf.optim.param_groups import (
  GroupedOptimizer,
  group_of,
  lr_multiplier,
)
from nfnets_tf.optim.unitwise import StepNorms, clipping_scale
from nfnets_tf.ranges import accepts, flag, number, optional


@keras.saving.register_keras_serializable(package="nfnets_tf")
@accepts(
  momentum=number(0, below=1),
  nesterov=flag(),
  weight_decay=number(0),
  clipping=optional(number(above=0)),
  clipping_eps=number(0),
)
class SGD(GroupedOptimizer):
  """The optimizer of the NFNet papers, with DeepMind's order of operations.

  For a gradient g of the whole batch, summed over replicas, and a weight w:

    g <- clip_unitwise(g, w)          every variable but the classifier's kernel
    g <- g + weight_decay * w         kernels only, coupled
    v <- momentum * v + g
    w <- w - learning_rate * (g + momentum * v)          with Nesterov, else v

  (Brock et al. 2021, section 4 and appendix A.1.) The rate stays outside the
  buffer, unlike in Keras' SGD, where a changing rate also rescales the
  momentum. Clipping cannot be Keras' `clipnorm`, which acts before the sum over
  replicas. The defaults are the paper's for ImageNet at batch size 4096.
  `optim.param_groups` sets which variables are clipped and decayed, and
  multipliers on the learning rate.

  If any gradient is not finite, the step changes nothing but `iterations`:
  neither weights nor momentum.

  Args:
    learning_rate: a number >= 0 or a `LearningRateSchedule`.
    momentum: decay of the buffer, in [0, 1).
    nesterov: whether to use Nesterov's look-ahead.
    weight_decay: coefficient of the coupled L2 decay, >= 0.
    clipping: AGC's lambda, > 0; None turns clipping off.
    clipping_eps: AGC's floor under the norm of a unit's weights, >= 0.
    name: of the optimizer.

  Raises:
    UserError: if the schedule is one of Keras 3, or a number is out of range.
  """

  skips_nonfinite = True
  keeps_zeros = True

  def __init__(
    self,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 2e-5,
    clipping: float | None = 0.01,
    clipping_eps: float = 1e-3,
    name: str = "SGD",
    **kwargs,
  ):
    refuse_keras3("SGD.learning_rate", learning_rate)
    _check_rate(learning_rate)
    # Keras would apply its own decoupled decay, and compile the update of each
    # variable separately; the whole step can be compiled instead.
    kwargs.update(weight_decay=None, jit_compile=False)
    super().__init__(name=name, **kwargs)
    self._learning_rate = self._build_learning_rate(learning_rate)
    self.momentum = momentum
    self.nesterov = nesterov
    self.coupled_decay = weight_decay
    self.clipping = clipping
    self.clipping_eps = clipping_eps
    # Of the current step only:
    self._finite = None  # a scalar bool
    self._scales = {}  # of AGC, where known
    self._coefficients = {}  # see `_rate_and_momentum`

  def build(self, var_list):
    """Creates the momentum buffers and looks up every variable's group."""
    super().build(var_list)
    if getattr(self, "_built", False):
      return
    self.momentums = [
      self.add_variable_from_reference(variable, "momentum")
      for variable in var_list
    ]
    self._groups = [group_of(variable) for variable in var_list]
    self._multipliers = [lr_multiplier(variable) for variable in var_list]
    self._built = True

  def slots(self, variable):
    """Returns the momentum of a weight, in a list."""
    return [self.momentums[self._index_dict[self._var_key(variable)]]]

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
      name: of the optimizer's name scope.
      skip_gradients_aggregation: whether the gradients are already summed over
        replicas.
      norms: of these gradients, if they are summed and measured already.
      **kwargs: `experimental_aggregate_gradients`, its legacy opposite.
    """
    pairs = list(grads_and_vars)
    if norms is not None:
      # By gradient, since replicas share this object and each has its own; and
      # by variable, since two of them may have the same gradient.
      for (gradient, variable), scale in zip(pairs, norms.scales):
        self._scales[gradient.ref(), self._var_key(variable)] = scale
    pairs = [(g, v) for g, v in pairs if g is not None]
    aggregate = kwargs.pop("experimental_aggregate_gradients", True)
    if aggregate and not skip_gradients_aggregation:
      pairs = self.aggregate_gradients(pairs)
    # Non-finite steps run with a zero update instead of a tf.cond, which must
    # not contain cross-replica operations.
    self._finite = (
      all_finite(gradient for gradient, _ in pairs)
      if norms is None
      else norms.finite
    )
    try:
      return super().apply_gradients(
        pairs, name, skip_gradients_aggregation=True, **kwargs
      )
    finally:
      self._finite, self._scales, self._coefficients = None, {}, {}

  def update_step(self, gradient, variable):
    """Updates one variable and its momentum.

    Args:
      gradient: summed over replicas, of the variable's shape and dtype.
      variable: this replica's component, which has no group: see `build`.
    """
    key = self._var_key(variable)
    index = self._index_dict[key]
    velocity, group = self.momentums[index], self._groups[index]
    gradient = tf.convert_to_tensor(gradient)
    scale = self._scales.get((gradient.ref(), key))
    if scale is None and self.clipping is not None and group.clipped:
      scale = clipping_scale(
        gradient, variable, clipping=self.clipping, eps=self.clipping_eps
      )
    decay = self.coupled_decay if group.decayed else 0.0
    rate, momentum = self._rate_and_momentum(variable, self._multipliers[index])
    if fusion.worth_a_loop(variable):
      _update_in_one_loop(
        variable,
        velocity,
        gradient,
        scale=scale,
        decay=decay,
        rate=rate,
        momentum=momentum,
        finite=self._finite,
        nesterov=self.nesterov,
      )
      return
    if scale is not None:
      gradient *= scale
    if decay:
      gradient += decay * variable
    if self._finite is not None:
      gradient = tf.where(self._finite, gradient, tf.zeros_like(gradient))
    # The last two lines of the recurrence in one pass over memory, not in six.
    tf.raw_ops.ResourceApplyMomentum(
      var=variable.handle,
      accum=velocity.handle,
      lr=rate,
      grad=gradient,
      momentum=momentum,
      use_nesterov=self.nesterov,
    )

  def _rate_and_momentum(
    self, variable: tf.Variable, multiplier: float
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both of a variable; 0 and 1 if the step is skipped."""
    # A device does not wait for another's scalars.
    key = variable.device, variable.dtype, multiplier
    if key not in self._coefficients:
      rate = tf.cast(self.learning_rate * multiplier, variable.dtype)
      momentum = tf.cast(self.momentum, variable.dtype)
      if self._finite is not None:
        rate = tf.where(self._finite, rate, tf.zeros_like(rate))
        momentum = tf.where(self._finite, momentum, tf.ones_like(momentum))
      self._coefficients[key] = rate, momentum
    return self._coefficients[key]

  def get_config(self):
    """Returns the constructor's arguments."""
    config = super().get_config()
    for unused in ("weight_decay", "jit_compile"):
      config.pop(unused)
    return {
      **config,
      "learning_rate": self._serialize_hyperparameter(self._learning_rate),
      "momentum": self.momentum,
      "nesterov": self.nesterov,
      "weight_decay": self.coupled_decay,
      "clipping": self.clipping,
      "clipping_eps": self.clipping_eps,
    }


def _update_in_one_loop(
  variable,
  velocity,
  gradient,
  *,
  scale,
  decay,
  rate,
  momentum,
  finite,
  nesterov,
) -> None:
  """Does the whole recurrence of a kernel in one pass over memory."""
  units = variable.shape[-1]
  scale = tf.ones([units]) if scale is None else tf.reshape(scale, [-1])
  _update_loop(nesterov)(
    variable.handle,
    velocity.handle,
    tf.reshape(gradient, [-1, units]),
    tf.broadcast_to(scale, [units]),
    decay,
    rate,
    momentum,
    True if finite is None else finite,
  )


@functools.cache
def _update_loop(nesterov: bool):
  """Returns a compiled update, shared by all kernels."""
  kernel, vector, scalar = (tf.TensorSpec([None] * n) for n in (2, 1, 0))
  resource, truth = (tf.TensorSpec([], d) for d in (tf.resource, tf.bool))
  read, assign = tf.raw_ops.ReadVariableOp, tf.raw_ops.AssignVariableOp

  @tf.function(
    input_signature=[*[resource] * 2, kernel, vector, *[scalar] * 3, truth],
    jit_compile=True,
    autograph=False,
  )
  def update(weight, velocity, gradient, scale, decay, rate, momentum, finite):
    weights = read(resource=weight, dtype=tf.float32)
    shape = tf.shape(weights)
    w = tf.reshape(weights, tf.shape(gradient))
    v = tf.reshape(
      read(resource=velocity, dtype=tf.float32), tf.shape(gradient)
    )
    g = tf.where(finite, gradient * scale + decay * w, 0.0)
    v = momentum * v + g
    w -= rate * (g + momentum * v if nesterov else v)
    assign(resource=weight, value=tf.reshape(w, shape))
    assign(resource=velocity, value=tf.reshape(v, shape))

  return update


def _check_rate(rate) -> None:
  kinds = (
    keras.optimizers.schedules.LearningRateSchedule,
    tf.Variable,
    tf.Tensor,
  )
  valid = isinstance(rate, kinds) or number(0).contains(rate)
  require(valid, "SGD.learning_rate", rate, "a number >= 0, or a schedule")
