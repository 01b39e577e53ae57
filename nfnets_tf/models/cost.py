"""Parameters, arithmetic, activations and memory of a network's graph.

A network built by `abstractly` has variables without values, so that the
largest can be measured on a laptop.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from nfnets_tf.keras_api import keras

if TYPE_CHECKING:
  from nfnets_tf.optim.sam import SAM

_CONVOLUTIONS = ("Conv2D",)
_PRODUCTS = ("MatMul",)
_FLOAT32_BYTES = 4
# Compiled for a TPU v4, steps of F0, F1, F0+ and F1+ in bfloat16 take 0.79
# times the outputs of their convolutions for each image. A process that trains
# F0 at 128 px on a CPU grew by 0.93 (bfloat16) to 1.04 (float32) times that.
_MEMORY_OVER_CONVOLUTIONS = 0.8
_CPU_FACTOR = 1.3


def abstractly(build: Callable[[], keras.Model]) -> keras.Model:
  """Builds a network whose variables take no memory.

  The network can be measured and traced, not run.

  Args:
    build: returns the network, called without arguments.
  """
  nowhere = tf.Graph()  # its variables are symbolic: never initialized

  def create(next_creator, **kwargs):
    with nowhere.as_default():
      return next_creator(**kwargs)

  with tf.variable_creator_scope(create):
    return build()


def count_macs(network: keras.Model, image_size: int) -> int:
  """Counts the multiply-accumulates of one image's forward pass.

  Convolutions and matrix products count, as in the NFNet paper's "FLOPs"
  (table 3); sums, activations and the standardization of kernels do not.
  Neither does what the backward pass computes again: `count_recomputed_macs`.

  Args:
    network: takes [batch, image_size, image_size, 3].
    image_size: in pixels.
  """
  return _count(network, image_size).macs


def count_recomputed_macs(network: keras.Model, image_size: int) -> int:
  """Counts the multiply-accumulates that one image's backward pass repeats.

  Args:
    network: takes [batch, image_size, image_size, 3]; 0 unless it is an `NFNet`
      with `recompute`.
    image_size: in pixels.
  """
  return _count(network, image_size).recomputed_macs


def count_sparse_macs(
  network: keras.Model, image_size: int
) -> dict[tuple[int, ...], int]:
  """Counts those multiply-accumulates of `count_macs` that pruning may save.

  Args:
    network: takes [batch, image_size, image_size, 3]; {} unless it is an
      `NFNet(sparse=...)`.
    image_size: in pixels.

  Returns:
    {shape of a kernel: those of all such kernels in layers that are sparse and
    not frozen, as if they were dense}.
  """
  return dict(_count(network, image_size).by_sparse_kernel)


def count_activations(network: keras.Model, image_size: int) -> int:
  """Counts the activations that one image's backward pass needs.

  Those are the inputs and outputs of convolutions; a compiler recomputes the
  rest. For F0 at 224 px these are 26.4 million. Of blocks that are recomputed
  they are the inputs, and the whole of the largest block.

  Args:
    network: takes [batch, image_size, image_size, 3].
    image_size: in pixels.
  """
  counts = _count(network, image_size)
  return counts.kept + counts.computed_again


class _Counts(NamedTuple):
  """Of one image.

  Attributes:
    macs: of the forward pass.
    kept: activations from the forward to the backward pass.
    recomputed_macs: of the backward pass, those of the forward pass again.
    computed_again: activations of the largest layer that is recomputed.
    by_sparse_kernel: {shape: multiply-accumulates of the forward pass}.
  """

  macs: int = 0
  kept: int = 0
  recomputed_macs: int = 0
  computed_again: int = 0
  by_sparse_kernel: Mapping[tuple[int, ...], int] = Counter()  # never changed


@functools.lru_cache(maxsize=16)  # tracing the largest takes seconds
def _count(network, image_size) -> _Counts:
  shape = (1, image_size, image_size, 3)
  if not getattr(network, "counted_by_layer", False):
    counts, _ = _count_layer(network, shape)
    return counts._replace(by_sparse_kernel=Counter())
  total = _Counts()
  known = {}
  for layer in network.layers[1:]:
    # Rates and gains, which are floats, change no shape: most blocks of a stage
    # are alike but for them.
    config = {
      key: value
      for key, value in layer.get_config().items()
      if key != "name" and not isinstance(value, float)
    }
    key = type(layer), shape, repr(config)
    if key not in known:
      known[key] = _count_layer(layer, shape)
    counts, next_shape = known[key]
    again, kept, largest = 0, counts.kept, 0
    if getattr(layer, "recompute", False):
      again, kept, largest = counts.macs, math.prod(shape), kept
    sparse = Counter(total.by_sparse_kernel)
    if getattr(layer, "sparse", None) and layer.trainable:
      sparse.update(counts.by_sparse_kernel)
    total = _Counts(
      total.macs + counts.macs,
      total.kept + kept,
      total.recomputed_macs + again,
      max(total.computed_again, largest),
      sparse,
    )
    shape = next_shape
  return total


def _count_layer(layer, shape) -> tuple[_Counts, tuple[int, ...]]:
  """Returns the counts, which list every kernel, and the output's shape."""
  forward = tf.function(lambda inputs: layer(inputs), autograph=False)
  inputs = tf.TensorSpec(shape, tf.float32)
  graph = forward.get_concrete_function(inputs).graph
  operations = graph.get_operations()
  convolutions = [op for op in operations if op.type in _CONVOLUTIONS]
  kept = {
    tensor.ref(): tensor.shape.num_elements()
    for operation in convolutions
    for tensor in (operation.inputs[0], operation.outputs[0])
  }
  by_kernel = Counter()
  for operation in convolutions:
    by_kernel[tuple(operation.inputs[1].shape)] += _macs(operation)
  counts = _Counts(
    sum(map(_macs, operations)), sum(kept.values()), by_sparse_kernel=by_kernel
  )
  return counts, tuple(graph.outputs[0].shape)


def _macs(operation: tf.Operation) -> int:
  if operation.type not in _CONVOLUTIONS + _PRODUCTS:
    return 0
  # Every output element sums over the kernel's axes but the last.
  output, kernel = operation.outputs[0].shape, operation.inputs[1].shape
  return output.num_elements() * kernel[:-1].num_elements()


def count_parameters(network: keras.Model) -> tuple[int, int]:
  """Returns the numbers of trainable parameters of (body, classifier)."""
  total = sum(v.shape.num_elements() for v in network.trainable_variables)
  head = network.get_layer("classifier").trainable_variables
  in_head = sum(v.shape.num_elements() for v in head)
  return total - in_head, in_head


class Memory(NamedTuple):
  """Memory of a training step on one device, in bytes.

  Attributes:
    fixed: of weights, gradients, momentum, averages if there are any, and SAM's
      copies.
    per_image: of each image that is computed at a time.
  """

  fixed: int
  per_image: int

  def describe(self, replica_batch: int | None = None) -> str:
    """Returns the estimate in words.

    Args:
      replica_batch: images per device; None if unknown.
    """
    text = (
      f"about {_in_bytes(self.fixed)} per device plus"
      f" {_in_bytes(self.per_image)} per image at a time, compiled (on a CPU up"
      f" to {_CPU_FACTOR} times as much per image)"
    )
    if replica_batch is None:
      return text
    total = _in_bytes(self.fixed + replica_batch * self.per_image)
    return f"{text}, {total} for {replica_batch} images per device"


def _in_bytes(count: int) -> str:
  for unit, scale in (("GB", 1e9), ("MB", 1e6)):
    if count >= scale:
      return f"{count / scale:,.1f} {unit}"
  return f"{count / 1e3:,.1f} kB"


def estimate_memory(
  network: keras.Model,
  *,
  image_size: int,
  sam: SAM | None,
  policy: str,
  averages: bool,
) -> Memory:
  """Estimates the memory of a training step; creates no weights.

  Args:
    network: may be one of `abstractly`.
    image_size: height and width of training images, in pixels.
    sam: of the training step, or None.
    policy: Keras' precision policy.
    averages: whether the classifier averages the weights.
  """
  parameters = sum(count_parameters(network))
  # Weights, gradients, momentum; SAM copies weights and gradients.
  copies = 3 + averages + 2 * (sam is not None)
  bytes_each = 2 if "16" in policy else _FLOAT32_BYTES
  activations = count_activations(network, image_size) * bytes_each
  return Memory(
    copies * _FLOAT32_BYTES * parameters,
    round(_MEMORY_OVER_CONVOLUTIONS * activations),
  )
