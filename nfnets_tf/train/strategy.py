"""Which devices train: functions that return a `tf.distribute.Strategy`.

A gin file binds one of them to STRATEGY. `tf-models-official` makes the
strategies; what is added here is to look before, and to say what is missing.
"""

import os

import tensorflow as tf
from official.common import distribute_utils

from nfnets_tf.ops.errors import UserError

_OTHERS = "bind STRATEGY to @strategy.auto, @strategy.mirrored or"
_OTHERS += " @strategy.one_device to train on this machine"


def one_device() -> tf.distribute.Strategy:
  """The first GPU of this machine, or its CPU."""
  gpus = len(tf.config.list_logical_devices("GPU"))
  return distribute_utils.get_distribution_strategy(
    "one_device", num_gpus=min(gpus, 1)
  )


def mirrored() -> tf.distribute.Strategy:
  """All GPUs of this machine.

  Raises:
    UserError: if it has none.
  """
  gpus = len(tf.config.list_logical_devices("GPU"))
  if not gpus:
    raise UserError(
      "STRATEGY = @strategy.mirrored found no GPU; bind STRATEGY to"
      " @strategy.one_device to train on the CPU."
    )
  return distribute_utils.get_distribution_strategy("mirrored", num_gpus=gpus)


def tpu(*, address: str) -> tf.distribute.Strategy:
  """The TPU of this machine, or a named one.

  Args:
    address: "local" for the chips of this host, else a TPU's name or address.

  Raises:
    UserError: if there is no such TPU.
  """
  if address == "local" and not _has_local_tpu():
    raise UserError(
      "STRATEGY = @strategy.tpu found no TPU on this machine (no /dev/accel* or"
      f" /dev/vfio, and TPU_NAME is not set); run on a TPU VM, or {_OTHERS}."
    )
  try:
    return distribute_utils.get_distribution_strategy(
      "tpu", tpu_address=address
    )
  except (ValueError, tf.errors.OpError) as error:
    raise UserError(
      f"STRATEGY = @strategy.tpu could not reach the TPU {address!r}"
      f" ({error}); bind strategy.tpu.address to another, or {_OTHERS}."
    ) from error


def auto() -> tf.distribute.Strategy:
  """A local TPU if there is one, else all GPUs, else the CPU."""
  if _has_local_tpu():
    return tpu(address="local")
  if tf.config.list_logical_devices("GPU"):
    return mirrored()
  return one_device()


def describe(strategy: tf.distribute.Strategy) -> str:
  """Says what a strategy trains on, such as "OneDeviceStrategy, 1 replica"."""
  replicas = strategy.num_replicas_in_sync
  plural = "replica" if replicas == 1 else "replicas"
  return f"{type(strategy).__name__}, {replicas} {plural}"


def _has_local_tpu() -> bool:
  devices = tf.io.gfile.glob("/dev/accel*") + tf.io.gfile.glob(
    "/dev/vfio/[0-9]*"
  )
  return bool(devices or os.environ.get("TPU_NAME"))
