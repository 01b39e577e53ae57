"""Distribution strategies, and the processes that train together.

A gin file binds one of `auto`, `one_device`, `mirrored`, `multi_worker` and
`tpu` to STRATEGY. `tf-models-official` creates the strategies; these functions
check the machine first and report what they found and what is missing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from official.common import distribute_utils

from nfnets_tf.errors import NothingToDo, RunError, UserError, plain_message
from nfnets_tf.progress import activity
from nfnets_tf.ranges import accepts, number

LOGGER = logging.getLogger("nfnets_tf")

_POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0  # with a host that cannot be reached
_GRACE_SECONDS = 20.0  # for an error of TensorFlow's to end the run

_ALTERNATIVES = (
  "bind STRATEGY to @distribution.auto, @distribution.mirrored or"
  " @distribution.one_device to train on this machine"
)


def one_device() -> tf.distribute.Strategy:
  """Trains on the first GPU of this machine, or its CPU."""
  gpus = len(tf.config.list_logical_devices("GPU"))
  return distribute_utils.get_distribution_strategy(
    "one_device", num_gpus=min(gpus, 1)
  )


def mirrored() -> tf.distribute.Strategy:
  """Trains on all GPUs of this machine.

  Raises:
    UserError: if it has none.
  """
  gpus = len(tf.config.list_logical_devices("GPU"))
  if not gpus:
    raise UserError(
      "STRATEGY = @distribution.mirrored found no GPU; bind STRATEGY to"
      " @distribution.one_device to train on the CPU."
    )
  return distribute_utils.get_distribution_strategy("mirrored", num_gpus=gpus)


def multi_worker() -> tf.distribute.Strategy:
  """Trains on all GPUs, or the CPUs, of the processes that TF_CONFIG lists.

  Waits until all of them run. To be called before TensorFlow initializes any
  device, since collectives across processes cannot be set up later.

  Raises:
    UserError: if TF_CONFIG is missing or invalid.
    RunError: if the other workers cannot be reached.
  """
  cluster = read_cluster()
  if cluster is None:
    raise UserError(
      "STRATEGY = @distribution.multi_worker found no TF_CONFIG in the"
      f" environment; set it (docs/many_machines.md), or {_ALTERNATIVES}."
    )
  count, addresses = len(cluster.addresses), ", ".join(cluster.addresses)
  LOGGER.info(
    "Worker %d of %d; waiting for all of %s.", cluster.index, count, addresses
  )
  try:
    with activity("Waiting for the other workers"):
      return distribute_utils.get_distribution_strategy("multi_worker_mirrored")
  except (RuntimeError, tf.errors.OpError) as error:
    raise RunError(
      f"worker {cluster.index} cannot connect to the others of TF_CONFIG"
      f" ({plain_message(error)}); check that all run and reach each other at"
      f" {addresses}, and restart all of them."
    ) from error


def tpu(*, address: str) -> tf.distribute.Strategy:
  """Trains on the TPU of this machine, or on a named slice of any size.

  One process drives all hosts of a slice: launched on each of them, the one of
  TPU_WORKER_ID 0 trains and the others exit.

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
      "the chips of this host are part of a slice, which one process drives;"
      " bind distribution.tpu.address to the TPU's name and set"
      " TPU_LOAD_LIBRARY=0 (docs/many_machines.md)."
    )
  if address == "local" and tpu_address() is None:
    raise UserError(
      "STRATEGY = @distribution.tpu found no TPU on this machine (no"
      " /dev/accel* or /dev/vfio, and TPU_NAME is not set); run on a TPU VM, or"
      f" {_ALTERNATIVES}."
    )
  try:
    return distribute_utils.get_distribution_strategy(
      "tpu", tpu_address=address
    )
  except (ValueError, tf.errors.OpError) as error:
    raise UserError(
      f"STRATEGY = @distribution.tpu could not reach the TPU {address!r}"
      f" ({plain_message(error)}); bind distribution.tpu.address to another,"
      f" or {_ALTERNATIVES}."
    ) from error


def auto() -> tf.distribute.Strategy:
  """Trains on TF_CONFIG's workers, a TPU, all GPUs, or else the CPU.

  The first of these that exists is used; the log says which.
  """
  cluster = read_cluster()
  if cluster is not None and len(cluster.addresses) > 1:
    devices = f"TF_CONFIG of {len(cluster.addresses)} workers"
    strategy = multi_worker()
  elif address := tpu_address():
    devices, strategy = f"a TPU ({address})", tpu(address=address)
  elif gpus := tf.config.list_physical_devices("GPU"):
    devices = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}"
    strategy = mirrored()
  else:
    devices, strategy = "neither TF_CONFIG nor a TPU nor a GPU", one_device()
  LOGGER.info("Found %s: training on %s.", devices, describe(strategy))
  return strategy


def describe(strategy: tf.distribute.Strategy) -> str:
  """Returns a strategy in words, such as "OneDeviceStrategy, 1 replica"."""
  replicas = strategy.num_replicas_in_sync
  plural = "replica" if replicas == 1 else "replicas"
  return f"{type(strategy).__name__}, {replicas} {plural}"


def tpu_address() -> str | None:
  """Returns "local" for chips of this host, a TPU's name, or None.

  With TPU_LOAD_LIBRARY = 0 this process leaves the host's chips to TensorFlow's
  server, as a slice of several hosts requires: TPU_NAME then names all of them.
  """
  chips = tf.io.gfile.glob("/dev/accel*") + tf.io.gfile.glob("/dev/vfio/[0-9]*")
  name = os.environ.get("TPU_NAME") or None
  if chips and (os.environ.get("TPU_LOAD_LIBRARY") != "0" or name is None):
    return "local"
  return name


class Cluster(NamedTuple):
  """The processes that TF_CONFIG lists.

  Attributes:
    addresses: of all workers, "HOST:PORT"; the first one is the chief.
    index: of this process among them.
  """

  addresses: tuple[str, ...]
  index: int


def read_cluster() -> Cluster | None:
  """Reads TF_CONFIG; None if it is not set or lists no workers.

  Raises:
    UserError: if it is invalid.
  """
  text = os.environ.get("TF_CONFIG", "").strip()
  if not text:
    return None
  try:
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    jobs = resolver.cluster_spec().as_dict()
    if not jobs:
      return None
    chief, workers = jobs.pop("chief", []), jobs.pop("worker", [])
    # TensorFlow counts a job "chief" before the workers.
    addresses, first = (*chief, *workers), {"chief": 0, "worker": len(chief)}
    index = first[resolver.task_type] + resolver.task_id
    tasks = {"chief": chief, "worker": workers}[resolver.task_type]
    valid = (
      not jobs  # no parameter servers or evaluators
      and len(chief) <= 1
      and 0 <= resolver.task_id < len(tasks)
      and len(set(addresses)) == len(addresses)
      and all(re.fullmatch(r"\S+:\d+", address) for address in addresses)
    )
  except (ValueError, TypeError, AttributeError, KeyError):
    valid = False
  if not valid:
    text = " ".join(text.split())
    raise UserError(
      f"TF_CONFIG = {text if len(text) <= 200 else f'{text[:200]}...'} is"
      ' invalid; expected {"cluster": {"worker": ["host:port", ...]}, "task":'
      ' {"type": "worker", "index": 0}} with a different index in each process'
      " (docs/many_machines.md)."
    )
  return Cluster(addresses, index)


class Workers:
  """The processes that run the same command, as seen by one of them.

  Under `MultiWorkerMirroredStrategy` there is one process for each worker of
  TF_CONFIG; any other strategy has one process. The methods are collective:
  every process calls the same ones in the same order, and waits for the others.

  Attributes:
    count: number of processes.
    index: of this process.
    chief: whether this process, the first one, writes files and reports.
  """

  def __init__(self, strategy: tf.distribute.Strategy):
    self._strategy, cluster = strategy, None
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
      cluster = read_cluster()
    self.count = len(cluster.addresses) if cluster else 1
    self.index = cluster.index if cluster else 0
    self.chief = self.index == 0

  def all_gather(self, value: int) -> list[int]:
    """Returns the value of every worker, in their order."""
    if self.count == 1:
      return [value]
    row = np.zeros([self.count], np.int64)
    row[self.index] = value
    # A sum over replicas: the first one of each worker brings its value, at
    # the worker's place, and the others bring zeros.
    first = self.index * self._strategy.num_replicas_in_sync // self.count

    def row_of_replica(context):
      is_first = context.replica_id_in_sync_group == first
      return row if is_first else np.zeros_like(row)

    rows = self._strategy.experimental_distribute_values_from_function(
      row_of_replica
    )
    total = self._strategy.reduce(tf.distribute.ReduceOp.SUM, rows, axis=None)
    return total.numpy().tolist()

  def any(self, value: bool) -> bool:
    """Returns whether the value is true for at least one worker."""
    return any(self.all_gather(int(value)))

  def barrier(self) -> None:
    """Blocks until all workers have called it."""
    self.all_gather(0)

  def check_same_step(self, step: int, workdir: str) -> None:
    """Raises a UserError unless all workers restored the same checkpoint."""
    steps = self.all_gather(step)
    if len(set(steps)) > 1:
      raise UserError(
        f"the workers found checkpoints of different steps in {workdir!r}"
        f" ({', '.join(map(str, steps))}); use a --workdir on storage that all"
        " of them share."
      )


def slice_hosts(strategy: tf.distribute.Strategy) -> list[str]:
  """Returns "HOST:PORT" of the servers that this one process drives.

  There are none unless it trains on a slice of several hosts.
  """
  resolver = strategy.cluster_resolver
  if resolver is None or isinstance(
    strategy, tf.distribute.MultiWorkerMirroredStrategy
  ):
    return []
  return resolver.cluster_spec().as_dict().get("worker", [])


@accepts(poll=number(above=0), patience=number(0), grace=number(0))
@contextlib.contextmanager
def watch_hosts(
  addresses: Sequence[str],
  *,
  poll: float = _POLL_SECONDS,
  patience: float = _PATIENCE_SECONDS,
  grace: float = _GRACE_SECONDS,
  on_lost: Callable[[str], None] | None = None,
) -> Iterator[None]:
  """Ends this process with exit code 1 if a host is lost during a `with`.

  TensorFlow may wait forever for what a lost host was computing, where no
  exception and no signal handler gets through.

  Args:
    addresses: result of `slice_hosts`; with none, nothing is watched.
    poll: seconds between two looks at every host.
    patience: seconds for which a host may be out of reach. One that refuses
      connections has lost its server, and the run's variables with it.
    grace: seconds for TensorFlow's own error to end the run.
    on_lost: called with the address, instead of ending the process.
  """
  ended = threading.Event()

  def watch():
    lost = _wait_for_lost_host(addresses, ended, poll, patience)
    if lost is not None and not ended.wait(grace):
      (on_lost or _exit_process)(lost)

  thread = threading.Thread(target=watch, daemon=True)
  if addresses:
    thread.start()
  try:
    yield
  finally:
    ended.set()


def _wait_for_lost_host(
  addresses: Sequence[str],
  ended: threading.Event,
  poll: float,
  patience: float,
) -> str | None:
  """Returns the address of the first host that is lost; None when `ended`."""
  reached = dict.fromkeys(addresses, time.monotonic())
  while not ended.wait(poll):
    for address in addresses:
      host, _, port = address.rpartition(":")
      try:
        socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
        reached[address] = time.monotonic()
      except ConnectionRefusedError:
        return address
      except OSError:
        if time.monotonic() - reached[address] > patience:
          return address
  return None


def _exit_process(address: str) -> None:
  LOGGER.error(
    "Exiting: the host %s of the slice is lost; when all of its hosts are back,"
    " rerun the same command to resume from the last checkpoint.",
    address,
  )
  sys.stderr.flush()
  os._exit(1)
