"""Times alternatives side by side, so that only their ratio matters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def seconds_side_by_side(
  functions: Mapping[str, Callable[[], object]],
  *,
  rounds: int,
  prepare: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
  """Calls every function once per round, in turn.

  Args:
    functions: by name.
    rounds: to time, after a first one that compiles and is not timed.
    prepare: called before each call, outside the timing.

  Returns:
    {name: seconds of each round}.
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


def noise(batch: int, size: int) -> np.ndarray:
  """Returns images of random bytes, [batch, size, size, 3]."""
  r = np.random.default_rng(0)
  return r.integers(0, 255, [batch, size, size, 3], np.uint8)


def train_steps(model, images, labels) -> Callable[[], object]:
  """Returns a function that runs one training step on a batch.

  Not `train_on_batch`, which opens and destroys an iterator in each call: its
  destruction waits until tf.data's autotuner wakes up, for up to a minute.

  Args:
    model: a compiled `keras.Model`.
    images: of the batch, [batch, height, width, 3].
    labels: of the batch, [batch].
  """
  import tensorflow as tf  # the other functions need none

  options = tf.data.Options()
  options.autotune.enabled = False
  batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
  iterator = iter(batches.with_options(options))
  step = model.make_train_function()
  return lambda: float(step(iterator)["loss"])


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
  """Returns the median of the rounds' ratios.

  The speed of a machine changes less within a round than between rounds.
  """
  return statistics.median(a / b for a, b in zip(above, below))
