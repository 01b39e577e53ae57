"""The tf.data service: other machines decode and augment, in the same order."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.data import tuning
from nfnets_tf.errors import UserError

_SECONDS_TO_CONNECT = 10.0
_SECONDS_ASLEEP = 0.2


class Service:
  """Batches that n servers make for this host, each every n-th one.

  The order is that of a host that makes all of them itself. A server is a
  dispatcher with one worker: several workers of one dispatcher come in whatever
  order they happen to register in. Every server reads all records, so that the
  shards must be where all of them can read, and makes its own batches only.

  Args:
    addresses: "HOST:PORT" of every server.

  Raises:
    UserError: if there is none, or one is no address.
  """

  def __init__(self, *, addresses: Sequence[str]):
    if isinstance(addresses, str) or not addresses:
      raise UserError(
        f"Service.addresses = {addresses!r} cannot be used; bind it to a list"
        " of HOST:PORT, one for each server."
      )
    for address in addresses:
      split_address(address)
    self.addresses = tuple(addresses)

  def collect(
    self, make: Callable[[int, int], tf.data.Dataset]
  ) -> tf.data.Dataset:
    """Returns what all servers make, in turn.

    Args:
      make: maps the number of a server and how many there are to its part, an
        endless data set.

    Raises:
      UserError: if nobody listens at an address.
    """
    count = len(self.addresses)
    parts = []
    for number, address in enumerate(self.addresses):
      _connect(address)
      # Servers get no other options.
      part = make(number, count).with_options(tuning.options())
      distributed = tf.data.experimental.service.distribute(
        tf.data.experimental.service.ShardingPolicy.OFF,
        f"grpc://{address}",
        job_name=uuid.uuid4().hex,
      )
      parts.append(part.apply(distributed).prefetch(1))
    turns = tf.data.Dataset.range(count).repeat()
    return tf.data.Dataset.choose_from_datasets(parts, turns)


def split_address(address: str) -> tuple[str, int]:
  """Returns (host, port) of "HOST:PORT".

  Raises:
    UserError: if it is no such text.
  """
  host, _, port = str(address).rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(
      f"{address!r} is no address of a data server; expected HOST:PORT, such as"
      " data-1:5000."
    )
  return host, int(port)


def _connect(address: str) -> None:
  try:
    socket.create_connection(
      split_address(address), _SECONDS_TO_CONNECT
    ).close()
  except OSError as error:
    raise UserError(
      f"no data server listens at {address} ({error}); start one"
      " (gin/data_server.gin) or correct Service.addresses."
    ) from error


def _check_free(host: str, port: int) -> None:
  # The service itself would share a port with another one and say nothing.
  try:
    socket.getaddrinfo(host, port)
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(("", port))
  except OSError as error:
    raise UserError(
      f"no data server can listen at {host}:{port} ({error}); bind ADDRESS to"
      " a name and a free port of this machine."
    ) from error


class Server(NamedTuple):
  """A dispatcher of the tf.data service and its worker."""

  dispatcher: tf.data.experimental.service.DispatchServer
  worker: tf.data.experimental.service.WorkerServer

  def join(self) -> None:
    """Serves until the process is interrupted."""
    # The dispatcher's own `join` would not hear an interrupt.
    while True:
      time.sleep(_SECONDS_ASLEEP)


def start_server(address: str) -> Server:
  """Starts a server.

  Args:
    address: "HOST:PORT" under which others reach it.

  Raises:
    UserError: if it is no address of this machine, or one in use.
  """
  host, port = split_address(address)
  _check_free(host, port)
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
  return Server(dispatcher, worker)
