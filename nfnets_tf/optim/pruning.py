"""Gradual magnitude pruning of standardized kernels.

Zhu and Gupta 2017 (arXiv 1710.01878), with the schedule of "Scaling Laws for
Sparsely-Connected Foundation Models" (arXiv 2309.08520). There is no mask: an
entry is pruned where the kernel is zero. A pruned entry has no gradient
(`ops.weight_standardization.standardize_sparse`), so that decay, momentum and
SAM leave it alone, and every copy of the weights, a checkpoint or an exported
file, knows what is pruned.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError, require
from nfnets_tf.keras_api import keras
from nfnets_tf.ops.replicas import assign_here
from nfnets_tf.optim.param_groups import GroupedOptimizer
from nfnets_tf.ranges import (
  STEPS,
  Range,
  accepts,
  built,
  number,
  one_of,
  optional,
)

if TYPE_CHECKING:
  from nfnets_tf.models.layers import WSConv2D

PRUNING = optional(built("@pruning.Pruning()"))  # of a `Classifier`
_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")
_LARGEST_GROUP = 16
_SHARE = number(0, 1)
_ROUNDING = 1e-3  # of a number of entries, which float32 may exceed


def _is_sparsity(value) -> bool:
  if isinstance(value, str):
    n, m = _kept_of_group(value) or (1, 0)
    return n < m <= _LARGEST_GROUP
  return number(0, below=1).contains(value)


def _kept_of_group(pattern) -> tuple[int, int] | None:
  match = isinstance(pattern, str) and _PATTERN.fullmatch(pattern)
  return tuple(map(int, match.groups())) if match else None


SPARSITY = Range(
  _is_sparsity, "a number in [0, 1), or 'n:m' with n < m <= 16, such as '2:4'"
)


@keras.saving.register_keras_serializable(package="nfnets_tf")
@accepts(
  sparsity=SPARSITY,
  total_steps=STEPS,
  begin=_SHARE,
  end=_SHARE,
  interval=number(above=0, most=1),
  distribution=one_of("uniform", "erdos_renyi"),
)
class Pruning:
  """Gradual magnitude pruning of an `NFNet`, for a `Classifier`.

    network = NFNet("F0", num_classes=10, sparse="live")
    model = Classifier(network, pruning=Pruning(0.75, total_steps=10_000))

  After t of T steps the sparsity of a kernel, the fraction of its entries that
  are zero, is (arXiv 2309.08520, section 2)

    s(t) = S (1 - (1 - (t - b) / (e - b))^3)          from b to e,

  0 before b = `begin` T and S after e = `end` T. Every `interval` T steps and
  at e, the entries of the smallest standardized magnitude are set to zero, in
  the weights, their momentum and their averages; none ever returns.

  The kernels of all convolutions but the stem's are pruned: what
  `NFNet(sparse=...)` makes sparse. Squeeze-excite, the classifier, gains and
  biases are dense.

  Args:
    sparsity: S, in [0, 1); or "n:m", which keeps n of every m neighboring input
      channels, such as "2:4": gradually too, m - 1 at first.
    total_steps: T, the length of the run.
    begin: b as a share of the run, in [0, 1].
    end: e likewise, at least `begin`; equal to it, all is pruned at once.
    interval: of the prunings, a share of the run in (0, 1].
    distribution: "uniform", S in every kernel, or "erdos_renyi": a density that
      is proportional to (height + width + inputs + outputs) / (height * width *
      inputs * outputs), such that S is the sparsity of all kernels together
      (Evci et al. 2020, arXiv 1911.11134). "n:m" is uniform.

  Raises:
    UserError: if a value is out of range, or `end` is before `begin`.
  """

  def __init__(
    self,
    sparsity: float | str,
    *,
    total_steps: int,
    begin: float = 0.25,
    end: float = 0.75,
    interval: float = 0.005,
    distribution: str = "uniform",
  ):
    require(end >= begin, "Pruning.end", end, f"at least begin = {begin}")
    self.pattern = _kept_of_group(sparsity)
    require(
      not (self.pattern and distribution != "uniform"),
      "Pruning.distribution",
      distribution,
      f"'uniform', as sparsity = {sparsity!r} is the same everywhere",
    )
    self.sparsity = sparsity
    self.total_steps = total_steps
    self.begin, self.end, self.interval = begin, end, interval
    self.distribution = distribution

  @property
  def final_sparsity(self) -> float:
    """Sparsity of the pruned kernels at the end of training, in [0, 1)."""
    if self.pattern:
      n, m = self.pattern
      return 1.0 - n / m
    return float(self.sparsity)

  @property
  def window(self) -> tuple[int, int]:
    """The completed steps at which pruning begins and ends."""
    begin, end = (round(x * self.total_steps) for x in (self.begin, self.end))
    return begin, max(end, 1)

  @property
  def every(self) -> int:
    """Steps from one pruning to the next."""
    return max(1, round(self.interval * self.total_steps))

  def sparsity_after(self, step, final: float | None = None):
    """Returns the sparsity of a kernel in which pruning has left it.

    Args:
      step: t, completed steps, an integer or integers [n].
      final: S of the kernel; None is `final_sparsity`.

    Returns:
      float64, of the shape of `step`.
    """
    final = self.final_sparsity if final is None else final
    begin, end = self.window
    t = np.asarray(step, np.float64)
    # Between prunings nothing changes.
    last = np.maximum(begin + (t - begin) // self.every * self.every, begin)
    done = (last - begin) / max(end - begin, 1)
    sparsity = final * np.where(t >= end, 1.0, _cubic(done))
    if self.pattern:
      _, m = self.pattern
      return 1.0 - np.ceil(m * (1.0 - sparsity) - _ROUNDING) / m
    return sparsity

  def mean_sparsity(self, final: float | None = None) -> float:
    """Returns the mean of `sparsity_after` over the steps of the run.

    With the default window it is 0.625 times the last one.
    """
    steps = np.arange(self.total_steps)
    return float(self.sparsity_after(steps, final).mean())

  def get_config(self):
    """Returns the constructor's arguments."""
    return {
      "sparsity": self.sparsity,
      "total_steps": self.total_steps,
      "begin": self.begin,
      "end": self.end,
      "interval": self.interval,
      "distribution": self.distribution,
    }

  @classmethod
  def from_config(cls, config):
    """Builds the object from the result of `get_config`."""
    return cls(**config)

  def sparsities_of(self, layers: Sequence[WSConv2D]) -> list[float]:
    """Returns S of the kernel of each layer; frozen ones are not pruned.

    Raises:
      UserError: if there is no layer to prune, or the channels of one do not
        divide into groups of m.
    """
    shapes = [tuple(layer.kernel.shape) for layer in layers]
    if not any(layer.trainable for layer in layers):
      raise UserError(
        "Pruning found no kernel to prune in the network; build it by"
        " NFNet(..., sparse='live'), and do not freeze all of it."
      )
    if self.pattern:
      _, m = self.pattern
      for shape in shapes:
        require(
          shape[2] % m == 0,
          "Pruning.sparsity",
          self.sparsity,
          f"groups that divide the {shape[2]} input channels of every kernel,"
          " or a number",
        )
    trained = [layer.trainable for layer in layers]
    if self.distribution == "uniform" or not self.final_sparsity:
      return [self.final_sparsity * each for each in trained]
    pruned = list(itertools.compress(shapes, trained))
    sparsities = iter(_erdos_renyi(pruned, self.final_sparsity))
    return [next(sparsities) if each else 0.0 for each in trained]


def _cubic(done):
  """Returns s(t) / S at a fraction of the window, an array or a tensor."""
  return 1.0 - (1.0 - done) ** 3


def _erdos_renyi(shapes, sparsity: float) -> list[float]:
  """Returns sparsities by kernel that sum to `sparsity` of all entries."""
  sizes = np.array([math.prod(shape) for shape in shapes], float)
  raw = np.array([sum(shape) for shape in shapes]) / sizes
  dense = np.zeros(len(sizes), bool)
  while True:  # those that would be more than dense are dense
    live = (1.0 - sparsity) * sizes.sum() - sizes[dense].sum()
    scale = live / (raw * sizes)[~dense].sum()
    densities = np.where(dense, 1.0, scale * raw)
    if (densities <= 1.0).all():
      return (1.0 - densities).tolist()
    dense |= densities >= 1.0


class PruningOptimizer:
  """Applies gradients with an optimizer, and prunes where that is due.

  To be used in a replica context: every replica prunes its copy, with the same
  result.

  Args:
    pruning: see there.
    optimizer: built.
    layers: whose kernels are pruned.
    averages: {id of a kernel: its average}.

  Raises:
    UserError: if no layer is sparse, a kernel does not fit the pattern, or the
      optimizer keeps averages of its own.
  """

  def __init__(
    self,
    pruning: Pruning,
    optimizer: keras.optimizers.Optimizer,
    layers: Sequence[WSConv2D],
    averages: dict[int, tf.Variable],
  ):
    if getattr(getattr(optimizer, "optimizer", optimizer), "use_ema", False):
      raise UserError(
        "Pruning does not reach the averages of an optimizer's use_ema, which"
        " would bring back what is pruned; use Classifier(ema_decay=...)."
      )
    self._pruning, self._optimizer = pruning, optimizer
    sparsities = dict(zip(layers, pruning.sparsities_of(layers)))
    self._sparsities = {x: s for x, s in sparsities.items() if x.trainable}
    self._keeps_zeros = (
      isinstance(optimizer, GroupedOptimizer) and optimizer.keeps_zeros
    )
    self._copies = {}  # variables that are zero where a layer's kernel is
    for layer in self._sparsities:
      copies = [averages[id(layer.kernel)]] if averages else []
      if self._keeps_zeros:
        copies += optimizer.slots(layer.kernel)
      self._copies[layer] = copies

  def apply_gradients(self, grads_and_vars, **kwargs) -> None:
    """Applies a step, and prunes after it if that is due.

    Args:
      grads_and_vars: see `keras.optimizers.Optimizer.apply_gradients`.
      **kwargs: likewise.
    """
    live = {}
    if not self._keeps_zeros:  # its buffers go on to move what is pruned
      live = {x: x.kernel.read_value() != 0.0 for x in self._sparsities}
    self._optimizer.apply_gradients(grads_and_vars, **kwargs)
    for layer, mask in live.items():
      kernel = tf.where(mask, layer.kernel.read_value(), 0.0)
      assign_here(layer.kernel, kernel)
    step = tf.identity(self._optimizer.iterations)
    tf.cond(self._is_due(step), lambda: self._prune(step), lambda: True)

  def sparsity(self) -> tf.Tensor:
    """Returns the fraction of zeros in all kernels, a float32 scalar."""
    kernels = [layer.kernel.read_value() for layer in self._sparsities]
    total = sum(kernel.shape.num_elements() for kernel in kernels)
    zeros = [tf.reduce_mean(tf.cast(x == 0.0, tf.float32)) for x in kernels]
    sizes = [kernel.shape.num_elements() / total for kernel in kernels]
    return tf.add_n([zero * size for zero, size in zip(zeros, sizes)])

  def _is_due(self, step) -> tf.Tensor:
    (begin, end), every = self._pruning.window, self._pruning.every
    regular = (step > begin) & ((step - begin) % every == 0)
    return (step <= end) & (regular | (step == end))

  def _prune(self, step) -> bool:
    progress = self._progress(step)
    for layer, sparsity in self._sparsities.items():
      magnitude = tf.abs(layer.standardized(tf.float32))
      sparsity = sparsity * progress
      if self._pruning.pattern:
        keep = _keep_of_groups(magnitude, self._pruning.pattern[1], sparsity)
      else:
        keep = _keep_largest(magnitude, sparsity)
      for variable in (layer.kernel, *self._copies[layer]):
        # Not a product, which would leave zeros of both signs.
        assign_here(variable, tf.where(keep, variable.read_value(), 0.0))
    return True

  def _progress(self, step) -> tf.Tensor:
    begin, end = self._pruning.window
    done = tf.cast(step - begin, tf.float32) / max(end - begin, 1)
    return tf.where(step >= end, 1.0, _cubic(done))


def _keep_largest(magnitude: tf.Tensor, sparsity: tf.Tensor) -> tf.Tensor:
  """Returns which entries are kept, all but the fraction `sparsity`."""
  size = magnitude.shape.num_elements()
  dropped = tf.cast(tf.round(sparsity * float(size)), tf.int64)
  keep = _largest(tf.reshape(magnitude, [-1]), dropped)
  return tf.reshape(keep, magnitude.shape)


@tf.function(
  input_signature=[
    tf.TensorSpec([None], tf.float32),
    tf.TensorSpec([], tf.int64),
  ],
  autograph=False,
)
def _largest(magnitude, dropped):
  """Returns which of nonnegative numbers [n] are not the smallest ones.

  Bisects over the bits of the threshold, which for nonnegative numbers are in
  their order: 31 passes. On a CPU a sort takes several times as long.

  Args:
    magnitude: [n].
    dropped: how many; of equal numbers the first ones.
  """
  # TensorFlow compares and adds int32 on the host of a GPU; on other devices
  # it adds them faster.
  integer = tf.int64 if tf.config.list_logical_devices("GPU") else tf.int32
  dropped = tf.cast(dropped, integer)

  def count(condition):
    return tf.reduce_sum(tf.cast(condition, integer))

  def halve(low, high):
    middle = low + (high - low) // 2
    enough = count(magnitude <= tf.bitcast(middle, tf.float32)) >= dropped
    return tf.where(enough, low, middle + 1), tf.where(enough, middle, high)

  bounds = tf.constant(0), tf.constant(np.float32(np.inf).view(np.int32))
  _, bits = tf.while_loop(lambda low, high: low < high, halve, bounds)
  threshold = tf.bitcast(bits, tf.float32)
  larger, equal = magnitude > threshold, magnitude == threshold
  spare = tf.size(magnitude, integer) - dropped - count(larger)
  from_end = tf.cumsum(tf.cast(equal, tf.int32), reverse=True)
  return larger | (equal & (from_end <= tf.cast(spare, tf.int32)))


def _keep_of_groups(
  magnitude: tf.Tensor, m: int, sparsity: tf.Tensor
) -> tf.Tensor:
  """Returns which entries are kept of every m neighboring input channels."""
  height, width, channels, filters = magnitude.shape
  groups = tf.reshape(magnitude, [height, width, channels // m, m, filters])
  kept = tf.math.ceil(m * (1.0 - sparsity) - _ROUNDING)
  rank = tf.zeros_like(groups)  # number of larger entries of the group
  first = tf.reshape(tf.range(m), [m, 1])
  for other in range(m):
    entry = groups[:, :, :, other : other + 1]
    larger = (entry > groups) | ((entry == groups) & (other < first))
    rank += tf.cast(larger, tf.float32)
  return tf.reshape(rank < kept, magnitude.shape)
