"""The job that makes batches for runs elsewhere: a tf.data service."""

from __future__ import annotations

import logging

from nfnets_tf.data.service import split_address, start_server
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.train.dry_run import format_table

LOGGER = logging.getLogger("nfnets_tf")


class DataServerJob:
  """Serves until it is interrupted.

  Args:
    address: "HOST:PORT" under which others reach it.

  Raises:
    UserError: if it is no address.
  """

  def __init__(self, *, address: str):
    split_address(address)
    self.address = address

  def plan(self) -> str:
    """Returns what would be served."""
    return format_table([("data server", self.address)])

  def run(self, context: RunContext) -> str:
    """Serves; writes nothing. See `train.TrainJob.run`."""
    server = start_server(self.address)
    LOGGER.info("Serving data at %s; interrupt to end.", self.address)
    server.join()
    return self.plan()
