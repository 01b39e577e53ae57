"""Which devices train: functions that return a `tf.distribute.Strategy`.

A gin file binds one of them to STRATEGY. `tf-models-official` makes the
strategies; what is added here is to look before, and to say what was found and
what is missing.
"""

from __future__ import annotations

import logging
import os

import tensorflow as tf
from official.common import distribute_utils

from nfnets_tf.errors import NothingToDo, RunError, UserError, plain_message
from nfnets_tf.train.cluster import read_cluster

LOGGER = logging.getLogger("nfnets_tf")

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


def multi_worker() -> tf.distribute.Strategy:
  """All GPUs, or the CPUs, of several processes that the same command started.

  TF_CONFIG says who they are. Returns when all of them are there. To be called
  before TensorFlow has made any device ready.

  Raises:
    UserError: if TF_CONFIG is missing or cannot be used.
    RunError: if the others cannot be reached.
  """
  cluster = read_cluster()
  if cluster is None:
    raise UserError(
      "STRATEGY = @strategy.multi_worker found no TF_CONFIG in the environment;"
      f" set it (docs/many_machines.md), or {_OTHERS}."
    )
  LOGGER.info(
    "Worker %d of %d; waiting for all of %s.",
    cluster.index,
    len(cluster.addresses),
    ", ".join(cluster.addresses),
  )
  try:
    return distribute_utils.get_distribution_strategy("multi_worker_mirrored")
  except (RuntimeError, tf.errors.OpError) as error:
    raise RunError(
      f"worker {cluster.index} cannot work with the others of TF_CONFIG"
      f" ({plain_message(error)}); see that all run and reach each other"
      f" at {', '.join(cluster.addresses)}, and start all of them again."
    ) from error


def tpu(*, address: str) -> tf.distribute.Strategy:
  """The TPU of this machine, or a named one: a slice of any size.

  One process drives all hosts of a slice. Started on each of them, the one on
  the first trains, and the others, which TPU_WORKER_ID tells apart, end.

  Args:
    address: "local" for the chips of this host, else a TPU's name or address.

  Raises:
    UserError: if there is no such TPU.
    NothingToDo: on any but the first host of a slice.
  """
  worker = os.environ.get("TPU_WORKER_ID", "0")
  if address != "local" and worker.strip() != "0":
    raise NothingToDo(
      f"TPU_WORKER_ID = {worker}: the first host of {address!r} trains with the"
      " chips of this one; there is nothing to do here."
    )
  if address == "local" and "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
    raise UserError(
      "the chips of this host are a part of a slice, which one process drives;"
      " bind strategy.tpu.address to the TPU's name and set TPU_LOAD_LIBRARY=0"
      " (docs/many_machines.md)."
    )
  if address == "local" and tpu_address() is None:
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
      f" ({plain_message(error)}); bind strategy.tpu.address to another,"
      f" or {_OTHERS}."
    ) from error


def auto() -> tf.distribute.Strategy:
  """What there is: TF_CONFIG's workers, a TPU, all GPUs, else the CPU.

  It says what it chose and why.
  """
  cluster = read_cluster()
  if cluster is not None and len(cluster.addresses) > 1:
    found, make = f"TF_CONFIG of {len(cluster.addresses)} workers", multi_worker
  elif address := tpu_address():
    found, make = f"a TPU ({address})", lambda: tpu(address=address)
  elif gpus := tf.config.list_physical_devices("GPU"):
    found, make = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}", mirrored
  else:
    found, make = "neither TF_CONFIG nor a TPU nor a GPU", one_device
  strategy = make()
  LOGGER.info("Found %s: training on %s.", found, describe(strategy))
  return strategy


def describe(strategy: tf.distribute.Strategy) -> str:
  """Says what a strategy trains on, such as "OneDeviceStrategy, 1 replica"."""
  replicas = strategy.num_replicas_in_sync
  plural = "replica" if replicas == 1 else "replicas"
  return f"{type(strategy).__name__}, {replicas} {plural}"


def tpu_address() -> str | None:
  """Returns "local" for chips of this host, a TPU's name, or None.

  With TPU_LOAD_LIBRARY = 0 this process leaves the host's chips to TensorFlow's
  server, as is right for a slice of several hosts: TPU_NAME stands for all.
  """
  chips = tf.io.gfile.glob("/dev/accel*") + tf.io.gfile.glob("/dev/vfio/[0-9]*")
  name = os.environ.get("TPU_NAME") or None
  if chips and (os.environ.get("TPU_LOAD_LIBRARY") != "0" or name is None):
    return "local"
  return name
