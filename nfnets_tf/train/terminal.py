"""Keeping the libraries' chatter off the screen, and in a file.

TensorFlow's C++ code writes to file descriptor 2, whatever Python's
`sys.stderr` is. So descriptor 2 itself is pointed at the log, and what the
project has to say goes to a copy of the old one.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import sys
import tempfile
from typing import TextIO


class QuietScreen:
  """From its making on, only what is written to `screen` is seen.

  Attributes:
    screen: the old standard error.
    log: path of the file that takes everything else.
  """

  def __init__(self):
    sys.stderr.flush()
    self.screen: TextIO = os.fdopen(os.dup(2), "w", buffering=1)
    descriptor, self.log = tempfile.mkstemp(".log", "nfnets_tf-")
    self._temporary = True
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # A crash inside a library must still be seen.
    faulthandler.enable(self.screen)
    logging.captureWarnings(True)
    handler = logging.StreamHandler(self.screen)
    handler.setFormatter(
      logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("nfnets_tf")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)

  @property
  def terminal(self) -> TextIO | None:
    """The screen if it is a terminal, None if it is a file or a pipe."""
    return self.screen if self.screen.isatty() else None

  def discard_log(self) -> None:
    """Removes the log if no run has taken it over."""
    if self._temporary:
      os.remove(self.log)

  def move_log(self, path: str) -> None:
    """Continues the log at `path`, a local file, after what it holds."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    sys.stderr.flush()
    with open(self.log, "rb") as old, open(path, "ab") as new:
      shutil.copyfileobj(old, new)
      new.flush()
      os.dup2(new.fileno(), 2)
    os.remove(self.log)
    self.log, self._temporary = path, False
