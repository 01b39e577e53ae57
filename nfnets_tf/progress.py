"""Shows that work which takes long is alive: a bar on a terminal, else lines.

  with activity("Writing shards", total=len(tasks)) as shown:
    for task in tasks:
      write(task)
      shown.advance()

Work that ends within seconds shows nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

LOGGER = logging.getLogger("nfnets_tf")

_Item = TypeVar("_Item")

_COUNTED = "{desc}: {n_fmt} of {total_fmt} |{bar}| {elapsed}"
_ENDLESS = "{desc} ... {elapsed}"
# Lines become rarer: after an hour, there is one every five minutes.
_LINES_PER_DURATION, _MAX_SECONDS = 12, 300.0


@dataclasses.dataclass
class Display:
  """Where activities are shown.

  Attributes:
    terminal: for a bar; None writes log lines.
    seconds: the longest silence of the first minute.
    last_output: time of the last log line, by the monotonic clock.
    activities: those in progress, the outermost first; only the last is shown.
  """

  terminal: TextIO | None = None
  seconds: float = 5.0
  last_output: float = -float("inf")
  activities: list[Activity] = dataclasses.field(default_factory=list)


DISPLAY = Display()


class Bar(tqdm):
  """A bar as wide as its terminal, or 80 columns if that has no width."""

  def __init__(self, **options):
    super().__init__(dynamic_ncols=True, **options)
    self.dynamic_ncols = _terminal_size
    # A bar that is below the last row is hidden, and does not look again.
    self.ncols, self.nrows = _terminal_size(self.fp)
    self.refresh()


def _terminal_size(stream: TextIO) -> tuple[int, int]:
  """Returns (columns, rows)."""
  try:
    columns, rows = os.get_terminal_size(stream.fileno())
  except (OSError, ValueError):
    columns = rows = 0
  return columns or 80, rows or 24


class Activity:
  """Work in progress, shown by a thread of its own.

  Args:
    text: says what is done, such as "Writing shards".
    total: number of its parts, None if unknown.

  Attributes:
    text: may be changed meanwhile.
  """

  def __init__(self, text: str, total: int | None = None):
    self.text, self._total, self._done = text, total, 0
    self._start = self._last = time.monotonic()
    self._bar: Bar | None = None
    self._ended = threading.Event()

  def advance(self, count: int = 1) -> None:
    """Counts parts that are done."""
    self._done += count

  def restart(self) -> None:
    """Begins anew, since something else has been shown."""
    self._start = self._last = time.monotonic()

  def run(self) -> None:
    """Shows the activity until `end` is called."""
    while not self._ended.wait(DISPLAY.seconds / 10):
      if DISPLAY.activities[-1:] != [self]:
        self._close_bar()
      elif DISPLAY.terminal is not None:
        self._draw()
      else:
        self._write_line()

  def end(self) -> None:
    """Ends `run`."""
    self._ended.set()

  def close(self) -> None:
    """Removes the bar, after `run`."""
    self._close_bar()

  def _draw(self) -> None:
    if time.monotonic() - self._last < DISPLAY.seconds / 5:
      self._close_bar()
      return
    if self._bar is None:
      self._bar = Bar(
        desc=self.text,
        total=self._total,
        file=DISPLAY.terminal,
        leave=False,
        bar_format=_COUNTED if self._total else _ENDLESS,
      )
      self._bar.start_t -= time.monotonic() - self._start
    self._bar.set_description_str(self.text, refresh=False)
    self._bar.n = self._done
    self._bar.refresh()

  def _write_line(self) -> None:
    now = time.monotonic()
    seconds = now - self._start
    silence = min(seconds / _LINES_PER_DURATION, _MAX_SECONDS)
    last = max(self._last, DISPLAY.last_output)
    # The next look may come a little too late.
    if now - last >= 0.9 * max(silence, DISPLAY.seconds):
      DISPLAY.last_output = now
      parts = f", {self._done:,} of {self._total:,}" if self._total else ""
      time_taken = tqdm.format_interval(seconds)
      LOGGER.info("%s%s, %s so far.", self.text, parts, time_taken)

  def _close_bar(self) -> None:
    bar, self._bar = self._bar, None
    if bar is not None:
      bar.close()


@contextlib.contextmanager
def activity(text: str, total: int | None = None) -> Iterator[Activity]:
  """Shows work for the duration of a `with`.

  Args:
    text: see `Activity`.
    total: see `Activity`.
  """
  shown = Activity(text, total)
  thread = threading.Thread(target=shown.run, daemon=True)
  DISPLAY.activities.append(shown)
  thread.start()
  try:
    yield shown
  finally:
    shown.end()
    thread.join()
    DISPLAY.activities.remove(shown)
    shown.close()


def counted(
  items: Iterable[_Item], text: str, total: int | None = None
) -> Iterator[_Item]:
  """Yields items, and shows how many of them are done.

  Args:
    items: any.
    text: see `Activity`.
    total: number of the items; None is their length, where they have one.
  """
  if total is None and hasattr(items, "__len__"):
    total = len(items)
  with activity(text, total) as shown:
    for item in items:
      yield item
      shown.advance()


class ScreenHandler(logging.StreamHandler):
  """Writes log lines above the bars."""

  def emit(self, record):
    with tqdm.external_write_mode(file=self.stream):
      super().emit(record)
    DISPLAY.last_output = time.monotonic()
