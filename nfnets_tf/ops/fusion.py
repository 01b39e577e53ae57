"""Elementwise operations as one loop over memory, on a CPU.

TensorFlow's kernels for a CPU pass over memory once for each operation. XLA
makes one loop of all, but a slow one of convolutions and of sums over leading
axes, so only elementwise functions are given to it. On an accelerator the whole
step is compiled, or every kernel is fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

LEAST_LOOP_ELEMENTS = 1 << 16  # of a kernel whose update is worth a compilation


def runs_on_cpu() -> bool:
  """Returns whether no accelerator will run what is built now."""
  # Under `TPUStrategy` a step can be traced where there is no TPU.
  traced_for_tpu = isinstance(
    tf.distribute.get_strategy(), tf.distribute.TPUStrategy
  )
  return not traced_for_tpu and not _has_accelerator()


@functools.cache
def _has_accelerator() -> bool:
  return bool(
    tf.config.list_logical_devices("GPU")
    or tf.config.list_logical_devices("TPU")
  )


def fuses() -> bool:
  """Returns whether loops pay and exist where operations are built now."""
  return runs_on_cpu() and _xla_runs()


def worth_a_loop(variable: tf.Variable) -> bool:
  """Returns whether a float32 kernel is large enough to compile its update."""
  size = variable.shape.num_elements()
  is_kernel = variable.shape.rank > 1 and variable.dtype == tf.float32
  return is_kernel and size >= LEAST_LOOP_ELEMENTS and fuses()


@functools.cache
def _xla_runs() -> bool:
  """Returns whether TensorFlow was built with XLA for this CPU."""
  with tf.init_scope():
    twice = tf.function(lambda x: 2.0 * x, jit_compile=True, autograph=False)
    try:
      twice(tf.constant(1.0))
    except tf.errors.OpError:
      return False
  return True


def loop(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
  """Compiles an elementwise function; computes in float32 at least.

  All calls with the same ranks and dtypes share one trace, of which XLA
  compiles each shape once, in about 20 ms. `function` must be one object for
  all calls, or each compiles anew.

  Args:
    function: maps tensors that are broadcast to the shape of the first one to a
      tensor of that shape.

  Returns:
    `function` with a keyword `dtype`, of the result; None is that of the first
    tensor.
  """

  @functools.cache
  def compiled(dtype, *signature):
    specs = [tf.TensorSpec([None] * rank, kind) for rank, kind in signature]

    @tf.function(input_signature=specs, jit_compile=True, autograph=False)
    def run(*tensors):
      return tf.cast(function(*map(_widened, tensors)), dtype)

    return run

  @functools.wraps(function)
  def call(*tensors, dtype=None):
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    signature = [(tensor.shape.rank, tensor.dtype) for tensor in tensors]
    result = compiled(dtype or tensors[0].dtype, *signature)(*tensors)
    result.set_shape(tensors[0].shape)
    return result

  return call


def _widened(tensor: tf.Tensor) -> tf.Tensor:
  return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor
