"""Long work shows that it is alive, on a terminal and in a pipe."""

import logging
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from nfnets_tf import progress

SCRIPT = """
import logging, time
from nfnets_tf.train.terminal import QuietScreen
from nfnets_tf import progress
QuietScreen()
progress.DISPLAY.seconds = 0.2
with progress.activity("Outer work"):
  time.sleep(0.7)
  for _ in progress.counted(range(3), "Counting parts"):
    time.sleep(0.3)
  logging.getLogger("nfnets_tf").info("a line of the log")
  with progress.activity("Quick work"):
    pass
"""


def seen(stream):
  """Returns what the script shows on a stream of `subprocess`."""
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT], stdout=subprocess.DEVNULL, stderr=stream
  )


def test_a_pipe_gets_lines():
  process = seen(subprocess.PIPE)
  lines = process.stderr.read().decode().splitlines()
  assert process.wait() == 0
  assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines), lines
  text = [line[10:] for line in lines]
  assert text[0] == "Outer work, 00:00 so far."
  assert any(re.match("Counting parts, [012] of 3, ", line) for line in text)
  assert text[-1] == "a line of the log"
  # 1.6 seconds, with about 0.2 of silence.
  assert 4 <= len(lines) <= 20


def test_a_terminal_gets_a_bar_that_is_removed():
  ours, theirs = pty.openpty()
  process = seen(theirs)
  os.close(theirs)
  shown = b""
  while True:
    try:
      shown += os.read(ours, 4096)
    except OSError:  # the other side is closed
      break
  assert process.wait() == 0
  text = shown.decode()
  assert "Outer work ... 00:0" in text and "Quick work" not in text
  assert re.search(r"Counting parts: 1 of 3 \|", text)
  # Nothing stays but the line of the log, whatever was drawn before it.
  (line,) = [x for x in text.split("\n") if "a line of the log" in x]
  assert re.search(r"\r *\r\d\d:\d\d:\d\d  a line of the log", line)
  assert text.rstrip("\n\r ").endswith(("a line of the log", "00:01"))


class Lines(logging.Handler):
  def __init__(self):
    super().__init__(logging.INFO)
    self.lines = []

  def emit(self, record):
    self.lines.append(record.getMessage())


@pytest.fixture
def lines(monkeypatch):
  monkeypatch.setattr(progress, "DISPLAY", progress.Display(seconds=0.05))
  handler, logger = Lines(), logging.getLogger("nfnets_tf")
  level = logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  yield handler.lines
  logger.setLevel(level)
  logger.removeHandler(handler)


def test_only_the_innermost_work_is_shown(lines):
  wait = threading.Event().wait
  with progress.activity("outer"), progress.activity("inner", 7) as shown:
    shown.advance(3)
    wait(0.4)
  assert lines and all(line.startswith("inner, ") for line in lines)
  assert lines[-1].startswith("inner, 3 of 7, 00:0")


def test_what_is_quick_is_not_shown(lines):
  before = threading.active_count()
  for _ in range(20):
    with progress.activity("quick"):
      pass
  assert lines == [] and threading.active_count() == before


def test_other_output_ends_the_silence(lines):
  with progress.activity("restarted") as shown:
    for _ in range(30):
      threading.Event().wait(0.01)
      shown.restart()
  assert lines == []


def test_an_error_ends_the_display(lines):
  with pytest.raises(KeyError), progress.activity("failing"):
    raise KeyError
  assert progress.DISPLAY.activities == [] and lines == []
