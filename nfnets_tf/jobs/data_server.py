"""The job that serves batches to training runs on other machines."""

from __future__ import annotations

import logging
import time

from nfnets_tf.data.data_service import parse_address, start_server
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.train.dry_run import format_table

LOGGER = logging.getLogger("nfnets_tf")

_POLL_SECONDS = 0.2


class DataServerJob:
  """Runs a data server until it is interrupted.

  Args:
    address: "HOST:PORT" under which training runs reach it.

  Raises:
    UserError: if the address is malformed.
  """

  def __init__(self, *, address: str):
    parse_address(address)
    self.address = address

  def plan(self) -> str:
    """Describes the served batches."""
    return format_table([("data server", self.address)])

  def run(self, context: RunContext) -> str:
    """Serves and writes nothing; see `job.Job`."""
    servers = start_server(self.address)
    LOGGER.info("Serving data at %s; interrupt to stop.", self.address)
    # The dispatcher's own `join` blocks in C++ and ignores Ctrl-C.
    while servers:
      time.sleep(_POLL_SECONDS)
    return self.plan()
