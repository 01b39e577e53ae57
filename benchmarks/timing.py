"""Timing alternatives side by side, so that only their ratio matters."""

import statistics
import time
from collections.abc import Callable, Mapping


def seconds_side_by_side(
  functions: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, float]:
  """Calls every function once a round, in turn; returns median seconds.

  A round before the first warms up and compiles.
  """
  times = {name: [] for name in functions}
  for turn in range(rounds + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      if turn:
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(taken) for name, taken in times.items()}
