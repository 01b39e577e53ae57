"""Keeps the libraries' output off the screen, in a log file.

TensorFlow's C++ code writes to file descriptor 2, whatever Python's
`sys.stderr` is. So descriptor 2 itself is redirected to the log, and the
project's own messages go to a copy of the old one.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import sys
import tempfile
from typing import TextIO

from nfnets_tf.progress import DISPLAY, ScreenHandler


class QuietScreen:
  """Redirects standard error, but for the project's logger, to a file.

  Attributes:
    screen: the original standard error.
    terminal: the same if it is a terminal, None if it is a file or a pipe.
    log: path of the file that receives everything else.
  """

  def __init__(self):
    self.screen: TextIO = os.fdopen(os.dup(2), "w", buffering=1)
    self.terminal = self.screen if self.screen.isatty() else None
    DISPLAY.terminal = self.terminal
    descriptor, self.log = tempfile.mkstemp(".log", "nfnets_tf-")
    self._temporary = True
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable(self.screen)  # a library's crash must be visible
    logging.captureWarnings(True)
    handler = ScreenHandler(self.screen)
    handler.setFormatter(
      logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("nfnets_tf")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)

  def discard_log(self) -> None:
    """Removes the log unless `move_log` has given it to a run."""
    if self._temporary:
      os.remove(self.log)

  def move_log(self, path: str) -> None:
    """Appends the log to `path`, a local file, and continues there."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    sys.stderr.flush()
    with open(self.log, "rb") as old, open(path, "ab") as new:
      shutil.copyfileobj(old, new)
      new.flush()
      os.dup2(new.fileno(), 2)
    os.remove(self.log)
    self.log, self._temporary = path, False
