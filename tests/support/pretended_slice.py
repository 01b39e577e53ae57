"""Hosts of a slice, pretended by TensorFlow's servers on this machine.

As on a TPU slice, one process drives them all: its own operations run on the
first host, and every host has an input pipeline of its own. Each host's CPU
trains one replica, in place of its chips.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf


class Slice(tf.distribute.MirroredStrategy):
  """`MirroredStrategy` with a replica, and an input pipeline, on each host.

  TensorFlow's own refuses devices of several processes.
  """

  def __init__(self, resolver: tf.distribute.cluster_resolver.ClusterResolver):
    tasks = range(resolver.cluster_spec().num_tasks("worker"))
    devices = [f"/job:worker/task:{i}/device:CPU:0" for i in tasks]
    super().__init__(devices[:1], tf.distribute.ReductionToOneDevice())
    extended = self.extended
    extended._initialize_strategy(devices)
    extended._cluster_resolver = resolver
    extended._input_workers_devices = tuple(
      (device, (device,)) for device in extended.worker_devices
    )


def strategy(*, addresses: Sequence[str]) -> Slice:
  """Connects this process to the hosts, as `distribution.tpu` does."""
  resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({"worker": list(addresses)}),
    master=f"grpc://{addresses[0]}",
  )
  # Its first host becomes the default device, as that of a TPU does.
  tf.config.experimental_connect_to_cluster(resolver)
  return Slice(resolver)


class Hosts:
  """Processes that serve as the hosts.

  Args:
    addresses: by which the hosts know each other, "localhost:PORT".
    ports: at which they listen; by default those of the addresses.

  Attributes:
    addresses: as given.
    pids: their process ids.
  """

  def __init__(self, addresses: list[str], ports: Sequence[int] = ()):
    self.addresses = addresses
    ports = ports or [address.split(":")[1] for address in addresses]
    self._process = subprocess.Popen(
      [sys.executable, __file__, ",".join(map(str, ports)), *addresses],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.pids = [self._start(index) for index in range(len(addresses))]

  def restart(self, index: int) -> None:
    """Starts a host that was killed anew, at the same address."""
    self.pids[index] = self._start(index)

  def _start(self, index: int) -> int:
    self._process.stdin.write(f"{index}\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline())

  def close(self) -> None:
    """Ends all of them."""
    self._process.communicate()

  @property
  def flags(self) -> list[str]:
    """Flags of a run that these hosts train."""
    return [
      "--gin_param=from tests.support import pretended_slice",
      "--gin_param=STRATEGY = @pretended_slice.strategy",
      f"--gin_param=pretended_slice.strategy.addresses = {self.addresses}",
    ]


@contextlib.contextmanager
def hosts(count: int = 2) -> Iterator[Hosts]:
  """Yields hosts that end with the context."""
  made = Hosts([f"localhost:{port}" for port in free_ports(count)])
  try:
    yield made
  finally:
    made.close()


def free_ports(count: int) -> list[int]:
  """Returns ports of this machine that nothing listens at."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for bound in sockets:
      bound.bind(("localhost", 0))
    return [bound.getsockname()[1] for bound in sockets]


def _serve(addresses: list[str], port: int, index: int) -> None:
  """Becomes a host, for as long as the parent lives."""
  parent = os.getppid()
  definition = tf.train.ServerDef(
    cluster=tf.train.ClusterSpec({"worker": addresses}).as_cluster_def(),
    job_name="worker",
    task_index=index,
    protocol="grpc",
    port=port,
  )

  def serve():
    tf.distribute.Server(definition).join()

  threading.Thread(target=serve, daemon=True).start()
  while os.getppid() == parent:
    time.sleep(0.2)
  os._exit(0)


def main() -> None:
  """Forks the host of each index that it reads; prints its process id.

  TensorFlow is imported once, and must not be used before the fork.
  """
  ports, addresses, pids = sys.argv[1].split(","), sys.argv[2:], []
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none remains a zombie
  for line in sys.stdin:
    pids.append(os.fork())
    if not pids[-1]:
      os.close(0)
      index = int(line)
      _serve(addresses, int(ports[index]), index)
    sys.stdout.write(f"{pids[-1]}\n")
    sys.stdout.flush()
  for pid in pids:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
  main()
