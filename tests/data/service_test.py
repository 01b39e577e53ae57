import socket

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocess, service
from nfnets_tf.errors import UserError
from tests.support.datasets import make_split as make
from tests.support.datasets import training_batches as training


def free_addresses(count):
  sockets = [socket.socket() for _ in range(count)]
  for some in sockets:
    some.bind(("localhost", 0))
  ports = [some.getsockname()[1] for some in sockets]
  for some in sockets:
    some.close()
  return [f"localhost:{port}" for port in ports]


@pytest.fixture(scope="module")
def addresses():
  """Two data servers."""
  addresses = free_addresses(2)
  servers = [service.start_server(address) for address in addresses]
  assert all(isinstance(server, service.Server) for server in servers)
  yield addresses
  for server in servers:
    server.worker._stop()
    server.dispatcher._stop()


@pytest.mark.parametrize("options", [{}, {"replicas": 2}, {"start_step": 3}])
def test_batches_are_those_of_one_host(make_dataset, addresses, options):
  operations = [preprocess.Shift(pixels=3), preprocess.Resize(image_size=8)]
  directory = make_dataset()
  served = make(
    directory,
    operations=operations,
    service=service.Service(addresses=addresses),
  )
  alone = make(directory, operations=operations)
  found = training(served, 9, **options)
  expected = training(alone, 9, **options)
  assert len(found) == len(expected) == 9
  for batch, other in zip(found, expected):
    for part, other_part in zip(batch, other):
      np.testing.assert_array_equal(part, other_part)


def test_a_bad_record_has_weight_0(make_dataset, addresses):
  def refuse(image, seed):
    del seed
    value = preprocess.decode(image)[0, 0, 0]
    tf.debugging.Assert(value != 7, [value])
    return image

  served = make(
    make_dataset(),
    operations=[refuse, preprocess.Resize(image_size=8)],
    service=service.Service(addresses=addresses),
  )
  weights = np.concatenate([w for _, _, w in training(served, 25)])
  assert weights.size - weights.sum() == 4  # one of 50, in 4 epochs


def test_nobody_listens(make_dataset):
  split = make(
    make_dataset(), service=service.Service(addresses=free_addresses(1))
  )
  with pytest.raises(UserError, match="no data server listens at localhost"):
    training(split, 1)


@pytest.mark.parametrize(
  "addresses, message",
  [
    (["5000"], "'5000' is no address"),
    (["host:x"], "expected HOST:PORT"),
    ([], r"addresses = \[\] cannot be used"),
    ("host:1", "addresses = 'host:1' cannot be used; bind it to a list"),
    (None, "addresses = None cannot be used"),
    (["host:0"], "'host:0' is no address"),
    (["host:65536"], "'host:65536' is no address"),
  ],
)
def test_services_that_cannot_be(addresses, message):
  with pytest.raises(UserError, match=message):
    service.Service(addresses=addresses)


def test_a_server_where_none_can_be(addresses):
  for address in (addresses[0], "no-such-host.invalid:5000"):
    with pytest.raises(UserError, match=f"can listen at {address} .*ADDRESS"):
      service.start_server(address)


def test_addresses():
  assert service.split_address("data-1:5000") == ("data-1", 5000)
