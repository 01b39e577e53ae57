"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TextIO

from tqdm import tqdm

LOGGER = logging.getLogger("nfnets_tf")


class Progress:
  """Shows step, loss, images a second and time left.

  Args:
    total_steps: of the run.
    step: at which this process starts.
    batch_size: images a step.
    stream: the terminal for a bar; None writes lines to the project's logger.
    clock: returns seconds.
    line_seconds: shortest time between two lines; the last one always comes.
    silent: whether nothing is shown, and only the speed is measured.
  """

  def __init__(
    self,
    *,
    total_steps: int,
    step: int,
    batch_size: int,
    stream: TextIO | None,
    clock=time.monotonic,
    line_seconds: float = 5.0,
    silent: bool = False,
  ):
    self._silent = silent
    self._total, self._step = total_steps, step
    self._batch_size = batch_size
    self._clock = clock
    self._time = clock()
    self._compiled = False
    self._line_seconds, self._last_line = line_seconds, -float("inf")
    self._bar = None
    if stream is not None:
      self._bar = tqdm(
        total=total_steps,
        initial=step,
        file=stream,
        unit="step",
        dynamic_ncols=True,
        bar_format="{desc}{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}"
        "{postfix}, {remaining} left",
      )

  def resume_clock(self) -> None:
    """Starts the interval anew: what passed since was not training."""
    self._time = self._clock()

  def go_back(self, step: int) -> None:
    """Starts anew at an earlier step."""
    self._step = step
    self.resume_clock()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.refresh()

  def update(self, step: int, loss: float) -> float:
    """Shows an interval's end; returns its images a second."""
    now = self._clock()
    rate = (step - self._step) / max(now - self._time, 1e-9)
    self._step, self._time = step, now
    images = rate * self._batch_size
    if self._bar is not None:
      self._bar.set_postfix_str(
        f"loss {loss:.4f}, {images:,.0f} images/s", refresh=False
      )
      self._bar.update(step - self._bar.n)
    elif self._silent:
      pass
    elif now - self._last_line >= self._line_seconds or step == self._total:
      self._last_line = now
      line = f"step {step:,}/{self._total:,}, loss {loss:.4f}"
      if self._compiled:
        left = tqdm.format_interval((self._total - step) / max(rate, 1e-9))
        line += f", {images:,.0f} images/s, {left} left"
      LOGGER.info(line)
    self._compiled = True  # the first interval's time says nothing
    return images

  def note(self, line: str) -> None:
    """Shows a line of its own, above the bar."""
    if self._silent:
      return
    if self._bar is None:
      LOGGER.info(line)
    else:
      self._bar.write(line, file=self._bar.fp)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()
