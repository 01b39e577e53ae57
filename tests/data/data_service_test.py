import socket

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.data_service import (
  DataService,
  parse_address,
  start_server,
)
from nfnets_tf.data.preprocessing import Resize, Shift
from nfnets_tf.errors import UserError
from tests.support.datasets import (
  make_split,
  training_batches,
  write_small_dataset,
)


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
  servers = [start_server(address) for address in addresses]
  yield addresses
  for dispatcher, worker in servers:
    # TensorFlow has no public method to stop one.
    worker._stop()
    dispatcher._stop()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return write_small_dataset(str(tmp_path_factory.mktemp("service") / "data"))


@pytest.mark.parametrize("options", [{}, {"replicas": 2, "start_step": 3}])
def test_batches_equal_those_without_servers(dataset, addresses, options):
  transforms = [Shift(pixels=3), Resize(image_size=8)]
  served, local = (
    training_batches(
      make_split(dataset, transforms=transforms, data_service=service),
      9,
      **options,
    )
    for service in (DataService(addresses=addresses), None)
  )
  assert len(served) == len(local) == 9
  for batch, other in zip(served, local):
    for part, other_part in zip(batch, other):
      np.testing.assert_array_equal(part, other_part)


def test_gives_invalid_records_weight_0(dataset, addresses):
  def reject_7(image, seed):
    del seed
    value = image[0, 0, 0]
    tf.debugging.Assert(value != 7, [value])
    return image

  split = make_split(
    dataset,
    transforms=[reject_7, Resize(image_size=8)],
    data_service=DataService(addresses=addresses),
  )
  weights = np.concatenate([w for *_, w in training_batches(split, 25)])
  assert weights.size - weights.sum() == 4  # one of 50, in 4 epochs


def test_reports_a_missing_server(dataset):
  service = DataService(addresses=free_addresses(1))
  split = make_split(dataset, data_service=service)
  with pytest.raises(UserError, match="no data server listens at localhost"):
    training_batches(split, 1)


@pytest.mark.parametrize(
  "addresses, message",
  [
    (["5000"], "'5000' is not the address"),
    (["host:x"], "expected HOST:PORT"),
    ([], r"addresses = \[\] is invalid"),
    ("host:1", "addresses = 'host:1' is invalid; expected a list"),
    (None, "addresses = None is invalid"),
    (["host:0"], "'host:0' is not the address"),
    (["host:65536"], "'host:65536' is not the address"),
  ],
)
def test_rejects_malformed_addresses(addresses, message):
  with pytest.raises(UserError, match=message):
    DataService(addresses=addresses)


def test_rejects_ports_in_use_and_foreign_hosts(addresses):
  for address in (addresses[0], "no-such-host.invalid:5000"):
    with pytest.raises(UserError, match=f"cannot listen at {address} .*ADDRE"):
      start_server(address)


def test_parses_addresses():
  assert parse_address("data-1:5000") == ("data-1", 5000)
