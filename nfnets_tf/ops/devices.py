"""Which kind of device runs the operations that are built now."""

import functools

import tensorflow as tf


def runs_on_cpu() -> bool:
  """Returns whether TensorFlow's own kernels on a CPU will run them."""
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
