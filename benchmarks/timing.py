"""Timing alternatives side by side, so that only their ratio matters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def seconds_side_by_side(
  functions: Mapping[str, Callable[[], object]],
  *,
  rounds: int,
  prepare: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
  """Calls every function once a round, in turn; returns each round's seconds.

  A round before the first warms up and compiles. `prepare` is called before
  each call and not timed.
  """
  times = {name: [] for name in functions}
  for turn in range(rounds + 1):
    for name, function in functions.items():
      if prepare is not None:
        prepare()
      start = time.perf_counter()
      function()
      if turn:
        times[name].append(time.perf_counter() - start)
  return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
  """Returns the median of the rounds' ratios.

  Within a round a machine changes its speed less than from one to another.
  """
  return statistics.median(a / b for a, b in zip(above, below))
