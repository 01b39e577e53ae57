"""The tf.data service: other machines decode and augment, in the same order."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.errors import UserError, require

_CONNECT_SECONDS = 10.0


class DataService:
  """Servers that make this host's batches: server i of n computes every n-th.

  The order is that of a host without servers. Each server has its own
  dispatcher with one worker: several workers of one dispatcher would take turns
  in the order in which they happen to register. Every server reads all records,
  so it must see the shards under the same path, but computes only its batches.

  Args:
    addresses: "HOST:PORT" of every server.

  Raises:
    UserError: if there are no addresses, or one is malformed.
  """

  def __init__(self, *, addresses: Sequence[str]):
    require(
      addresses and not isinstance(addresses, str),
      "DataService.addresses",
      addresses,
      "a list of HOST:PORT, one for each data server",
    )
    for address in addresses:
      parse_address(address)
    self.addresses = tuple(addresses)

  def distribute(
    self, make_shard: Callable[[int, int], tf.data.Dataset]
  ) -> tf.data.Dataset:
    """Returns the batches of all servers, in turn.

    Args:
      make_shard: maps the index of a server and the number of servers to the
        endless dataset of that server's batches. It must set the dataset's
        options: servers do not see those of the result.

    Raises:
      UserError: if no server listens at an address.
    """
    count = len(self.addresses)
    shards = []
    for index, address in enumerate(self.addresses):
      _check_connection(address)
      distributed = tf.data.experimental.service.distribute(
        tf.data.experimental.service.ShardingPolicy.OFF,
        f"grpc://{address}",
        job_name=uuid.uuid4().hex,
      )
      shards.append(make_shard(index, count).apply(distributed).prefetch(1))
    turns = tf.data.Dataset.range(count).repeat()
    return tf.data.Dataset.choose_from_datasets(shards, turns)


def parse_address(address: str) -> tuple[str, int]:
  """Splits "HOST:PORT" into host and port.

  Raises:
    UserError: if the text has another form.
  """
  host, _, port = str(address).rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(
      f"{address!r} is not the address of a data server; expected HOST:PORT,"
      " such as data-1:5000."
    )
  return host, int(port)


def _check_connection(address: str) -> None:
  # The tf.data service itself would wait for a missing server silently.
  try:
    socket.create_connection(parse_address(address), _CONNECT_SECONDS).close()
  except OSError as error:
    raise UserError(
      f"no data server listens at {address} ({error}); start one with"
      " gin/data_server.gin or correct DataService.addresses."
    ) from error


def _check_port_free(host: str, port: int) -> None:
  # The tf.data service would silently share a port that is in use.
  try:
    socket.getaddrinfo(host, port)
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(("", port))
  except OSError as error:
    raise UserError(
      f"a data server cannot listen at {host}:{port} ({error}); bind ADDRESS to"
      " a name and a free port of this machine."
    ) from error


def start_server(
  address: str,
) -> tuple[
  tf.data.experimental.service.DispatchServer,
  tf.data.experimental.service.WorkerServer,
]:
  """Starts a data server on this machine.

  Args:
    address: "HOST:PORT" under which training runs reach it.

  Returns:
    A dispatcher and its worker, which serve until they are deleted.

  Raises:
    UserError: if the address is malformed, not this machine's, or in use.
  """
  host, port = parse_address(address)
  _check_port_free(host, port)
  dispatcher = tf.data.experimental.service.DispatchServer(
    tf.data.experimental.service.DispatcherConfig(port=port)
  )
  worker = tf.data.experimental.service.WorkerServer(
    tf.data.experimental.service.WorkerConfig(
      dispatcher_address=f"localhost:{port}",
      worker_address=f"{host}:%port%",
      port=0,
    )
  )
  return dispatcher, worker
