"""Tables of a sweep: cost of each point, and outcome of each trial."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import tensorflow as tf

from nfnets_tf.fileio import read_bytes, report_write_errors, write_atomically
from nfnets_tf.scaling.sweep import GridPoint, Sweep
from nfnets_tf.scaling.sweep_store import DONE, PENDING, Trials

# Column of the plan: (title when printed, format, divisor).
_PRINTED = {
  "parameters": ("parameters", "{:,.0f}", 1),
  "macs": ("GMACs", None, 1e9),
  "images": ("images", "{:,.0f}", 1),
  "steps": ("steps", "{:,.0f}", 1),
  "flops": ("FLOPs", "{:.3g}", 1),
  "tpu_v4_core_hours": ("core-hours", None, 1),
  "utilization": ("of peak", "{:.1%}", 1),
  "memory_bytes": ("GB", None, 1e9),
  "memory_bytes_per_image": ("MB/image", None, 1e6),
  "cost": ("cost", "{:,.2f}", 1),
}
_RESULTS = ("point", "cell", "state")
_MAX_REASON = 60


def plan_table(
  points: Sequence[GridPoint],
  figures: Callable[[GridPoint], Mapping[str, float]],
  price: float | None,
) -> pd.DataFrame:
  """Returns a row for each point of the grid, of one trial there.

  Args:
    points: of the grid.
    figures: returns the cost of a point, as `train.TrainJob.figures`.
    price: of a TPU-v4 core-hour, or None.

  Returns:
    Columns point, the macros, the figures, and cost if there is a price.
  """
  rows = []
  for point in points:
    row = {"point": point.name, **point.bindings, **figures(point)}
    if price is not None:
      row["cost"] = price * row["tpu_v4_core_hours"]
    rows.append(row)
  return pd.DataFrame(rows)


def describe_plan(plan: pd.DataFrame, *, trials: int) -> str:
  """Returns the plan as readable text, with its total.

  Args:
    plan: of `plan_table`.
    trials: minimum number of each point.
  """
  shown = pd.DataFrame({"point": plan["point"]})
  for column, (title, form, divisor) in _PRINTED.items():
    if column in plan:
      write = _readable if form is None else form.format
      shown[title] = [write(value) for value in plan[column] / divisor]
  shown.index = range(1, len(shown) + 1)
  total = f"{len(plan)} points"
  if trials > 1:
    total += f", at least {trials} trials each"
  hours = trials * plan["tpu_v4_core_hours"].sum()
  total += f": {trials * plan['flops'].sum():.3g} FLOPs,"
  total += f" {_readable(hours)} TPU-v4 core-hours"
  if "cost" in plan:
    total += f", cost {trials * plan['cost'].sum():,.2f}"
  return f"{shown.to_string()}\n\n{total}"


def _readable(value: float) -> str:
  return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def write_table(table: pd.DataFrame, path: str, root: str) -> None:
  """Writes a table as CSV, and creates the directory `root`."""
  with report_write_errors(root):
    tf.io.gfile.makedirs(root)
  write_atomically(path, table.to_csv(index=False))


def read_table(path: str) -> pd.DataFrame | None:
  """Returns the table in a CSV file, None if the file does not exist."""
  if not tf.io.gfile.exists(path):
    return None
  content = io.BytesIO(read_bytes(path))
  return pd.read_csv(content, float_precision="round_trip")


def results_table(
  sweep: Sweep, trials: Trials, plan: pd.DataFrame | None
) -> pd.DataFrame:
  """Returns a row for each trial that has ended, is running, or comes next.

  Args:
    sweep: whose points are in the table.
    trials: those of its store.
    plan: of `plan_table`, whose figures are repeated, or None.

  Returns:
    Columns point (name of the trial), cell (name of its point of the grid),
    state, the macros, the figures, the numbers of the result, seconds, reason.
  """
  costs = {} if plan is None else plan.set_index("point").to_dict("index")
  rows = []
  for point in sweep.points:
    shown = {t.name: t for t in sweep.trials_at(point, trials)}
    # Skip interrupted trials that the search does not need any more.
    shown = {n: t for n, t in shown.items() if t.state != PENDING}
    shown.update((t.name, t) for t in sweep.next_trials(point, trials))
    for trial in shown.values():
      numbers = {
        name: value
        for name, value in trial.result.items()
        if isinstance(value, (int, float))
      }
      rows.append(
        {
          "point": trial.name,
          "cell": point.name,
          "state": trial.state,
          **costs.get(point.name, {}),
          **trial.bindings,
          **numbers,
          "seconds": trial.seconds,
          "reason": trial.reason,
        }
      )
  return pd.DataFrame(rows, columns=None if rows else _RESULTS)


def describe_results(results: pd.DataFrame, loss: str) -> str:
  """Returns the trials and their states as readable text.

  Args:
    results: of `results_table`.
    loss: name of the column to show.
  """
  shown = results[["point", "state"]].copy()
  losses = results.get(loss, [math.nan] * len(shown))
  shown[loss] = [
    f"{value:.4f}" if state == DONE else ""
    for value, state in zip(losses, shown["state"])
  ]
  if "reason" in results and results["reason"].notna().any():
    shown["reason"] = [_shorten(reason) for reason in results["reason"]]
  shown.index = range(1, len(shown) + 1)
  counts = ", ".join(
    f"{count} {state}" for state, count in shown["state"].value_counts().items()
  )
  return f"{shown.to_string()}\n\n{counts}"


def _shorten(reason) -> str:
  text = reason if isinstance(reason, str) else ""
  return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 3]}..."
