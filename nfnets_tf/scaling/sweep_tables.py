"""Tables of a sweep: plan, results, and a summary of both for its report."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import tensorflow as tf

from nfnets_tf.fileio import read_bytes, report_write_errors, write_atomically
from nfnets_tf.scaling.study import best_rates
from nfnets_tf.scaling.sweep_store import (
  DONE,
  FAILED,
  PENDING,
  RUNNING,
  Trials,
)

if TYPE_CHECKING:
  from nfnets_tf.scaling.sweep import GridPoint, Sweep

LOGGER = logging.getLogger("nfnets_tf")

# Column of the plan: (title when printed, format, divisor).
_PRINTED = {
  "parameters": ("parameters", "{:,.0f}", 1),
  "nonzero_parameters": ("not zero", "{:,.0f}", 1),
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
_MAX_REASON = 60


def plan_table(
  points: Iterable[GridPoint],
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
  plan = pd.DataFrame(
    [{"point": p.name, **p.bindings, **figures(p)} for p in points]
  )
  if price is not None:
    plan["cost"] = price * plan["tpu_v4_core_hours"]
  return plan


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


def write_table(table: pd.DataFrame, path: str) -> None:
  """Writes a table as CSV, and creates its directory."""
  with report_write_errors(path):
    tf.io.gfile.makedirs(os.path.dirname(path))
  write_atomically(path, table.to_csv(index=False))


def read_table(path: str) -> pd.DataFrame | None:
  """Returns the table in a CSV file, None if the file does not exist."""
  if not tf.io.gfile.exists(path):
    return None
  content = io.BytesIO(read_bytes(path))
  # The default from pandas 3.1 on, which deprecates the argument.
  exact = {"float_precision": "round_trip"} if pd.__version__ < "3.1" else {}
  return pd.read_csv(content, **exact)


def read_plan(path: str) -> pd.DataFrame | None:
  """Returns the plan in a CSV file, as `plan_table` made it.

  Returns:
    None if there is no such file, or if it has been edited into something
    else, of which a warning is logged.
  """
  try:
    plan = read_table(path)
  except ValueError:  # of pandas too
    plan = pd.DataFrame()
  if plan is None:
    return None
  figures = [name for name in _PRINTED if name in plan]
  numeric = all(pd.api.types.is_numeric_dtype(plan[name]) for name in figures)
  required = {"point", "flops"} <= {*plan}
  if numeric and required and plan["point"].is_unique:
    return plan
  LOGGER.warning(
    "%r is ignored, since it is not the plan that the sweep wrote; rerun with"
    " --points=plan to write it again.",
    path,
  )
  return None


def results_table(
  sweep: Sweep, trials: Trials, plan: pd.DataFrame | None
) -> pd.DataFrame:
  """Returns a row for each trial that has ended, is running, or comes next.

  Args:
    sweep: whose points are in the table.
    trials: those of its store.
    plan: of `plan_table`, whose figures are repeated, or None.

  Returns:
    Columns point (name of the trial), grid_point (name of its point of the
    grid), state, the macros, the figures, the numbers of the result, seconds,
    reason, diverged.
  """
  costs = {} if plan is None else plan.set_index("point").to_dict("index")
  rows = []
  for point in sweep.points:
    shown = {t.name: t for t in sweep.trials_at(point, trials)}
    # Skip interrupted trials that the search does not need any more.
    shown = {n: t for n, t in shown.items() if t.state != PENDING}
    shown.update((t.name, t) for t in sweep.next_trials(point, trials))
    rows += [
      {
        "point": trial.name,
        "grid_point": point.name,
        "state": trial.state,
        **costs.get(point.name, {}),
        **trial.bindings,
        **{k: v for k, v in trial.result.items() if isinstance(v, Real)},
        "seconds": trial.seconds,
        "reason": trial.reason,
        "diverged": trial.diverged,
      }
      for trial in shown.values()
    ]
  return pd.DataFrame(rows)


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
  reasons = results["reason"].fillna("")
  if reasons.any():
    too_long = reasons.str.len() > _MAX_REASON
    short = reasons.str[: _MAX_REASON - 3] + "..."
    shown["reason"] = reasons.mask(too_long, short)
  shown.index = range(1, len(shown) + 1)
  counts = ", ".join(
    f"{count} {state}" for state, count in shown["state"].value_counts().items()
  )
  return f"{shown.to_string()}\n\n{counts}"


@dataclasses.dataclass(frozen=True)
class SweepStatus:
  """Snapshot of a sweep, from which its report is rendered.

  Attributes:
    name: of the sweep, shown as the title.
    loss: column of `results` that is compared; lower is better.
    tuned: macro that is tuned at every grid point, or None.
    grid: {name of a grid point: {macro: value}}, in the grid's order.
    results: of `results_table`.
    plan: of `plan_table`; None before planning.
    metrics_files: {trial: path of its run's metrics.jsonl}, the source of the
      learning curves; files that do not exist are skipped.
    config_text: the resolved configuration.
  """

  name: str
  loss: str
  tuned: str | None
  grid: Mapping[str, Mapping[str, object]]
  results: pd.DataFrame
  plan: pd.DataFrame | None
  metrics_files: Mapping[str, str]
  config_text: str


@dataclasses.dataclass(frozen=True)
class Summary:
  """A sweep in columns of fixed names, independent of its axes.

  Attributes:
    x_macro: macro along a curve: EPOCHS, else the last axis of numbers, else
      the last axis; None if the grid has one point.
    trials: a row per trial: point, grid_point, model (label of its curve: the
      values of the other axes), state, diverged, rate (tuned value), loss,
      compute (FLOPs), size (MACs), epochs, seconds, reason. Only trials that
      are done have a loss.
    points: a row per grid point, in the grid's order: grid_point, model, x
      (value of `x_macro`), compute, size, epochs; point, loss and rate of its
      best trial, if any; edge (see `study.best_rates`), and open: whether
      trials are still to come.
  """

  x_macro: str | None
  trials: pd.DataFrame
  points: pd.DataFrame

  @property
  def best(self) -> pd.DataFrame:
    """The grid points that have a loss."""
    return self.points[self.points["loss"].notna()]

  def counts(self) -> dict[str, int]:
    """Returns {state: number of trials}, of all four states."""
    states = (DONE, FAILED, RUNNING, PENDING)
    return {s: int((self.trials["state"] == s).sum()) for s in states}

  def decided_runs(self) -> pd.DataFrame:
    """Returns the finished trials of the grid points that are not open."""
    decided = self.points.loc[~self.points["open"], "grid_point"]
    runs = self.trials[self.trials["loss"].notna()]
    return runs[runs["grid_point"].isin(decided)].reset_index(drop=True)


def summarize(status: SweepStatus) -> Summary:
  """Returns the trials and grid points of a sweep in fixed columns."""
  grid, results = status.grid, status.results
  x_macro, models = _curves(grid)
  trials = pd.DataFrame(
    {
      **results[["point", "grid_point", "state", "diverged", "reason"]],
      "model": results["grid_point"].map(models),
      "rate": _numbers(results, status.tuned),
      "loss": _numbers(results, status.loss).where(results["state"] == DONE),
      "compute": _numbers(results, "flops"),
      "size": _numbers(results, "macs"),
      "epochs": _numbers(results, "EPOCHS").fillna(_numbers(results, "epochs")),
      "seconds": _numbers(results, "seconds"),
    }
  )
  best = trials.dropna(subset=["loss"]).sort_values("loss", kind="stable")
  best = best.drop_duplicates("grid_point").set_index("grid_point")
  costs = trials.drop_duplicates("grid_point").set_index("grid_point")
  tried = trials[trials["loss"].notna() | trials["diverged"]]
  tried = tried[tried["grid_point"].isin(best.index)].fillna({"loss": np.inf})
  edges = best_rates(tried, by=["grid_point"]).set_index("grid_point")
  open_trials = trials[trials["state"].isin([RUNNING, PENDING])]
  points = pd.DataFrame({"grid_point": list(grid)})
  points["model"] = points["grid_point"].map(models)
  values = [bindings.get(x_macro) for bindings in grid.values()]
  points["x"] = pd.Series(values, dtype=object)
  points = (
    points.join(costs[["compute", "size", "epochs"]], on="grid_point")
    .join(best[["point", "loss", "rate"]], on="grid_point")
    .join(edges["edge"], on="grid_point")
    .fillna({"edge": ""})
  )
  points["open"] = points["grid_point"].isin(open_trials["grid_point"])
  return Summary(x_macro, trials, points)


def _curves(grid) -> tuple[str | None, dict[str, str]]:
  """Returns the macro along a curve, and {grid point: label of its curve}."""
  table = pd.DataFrame(list(grid.values()), dtype=object)
  varying = [m for m in table if table[m].map(repr).nunique() > 1]
  numeric = [m for m in varying if table[m].map(is_number).all()]
  x_macro = next(reversed(numeric or varying), None)
  if "EPOCHS" in numeric:
    x_macro = "EPOCHS"
  macros = [m for m in varying if m != x_macro]
  labels = {}
  for name, bindings in grid.items():
    values = {m: bindings[m] for m in macros if m in bindings}
    if len(macros) == 1 and values:
      labels[name] = str(values[macros[0]])
    else:
      text = ", ".join(f"{m} = {value}" for m, value in values.items())
      labels[name] = text or "all"
  return x_macro, labels


def is_number(value) -> bool:
  """Returns whether a value is a real number, and not a boolean."""
  return isinstance(value, Real) and not isinstance(value, bool)


def _numbers(table: pd.DataFrame, column: str | None) -> pd.Series:
  """Returns a column as finite numbers or NaN; NaN if it does not exist."""
  if column not in table:
    return pd.Series(np.nan, index=table.index)
  values = pd.to_numeric(table[column], errors="coerce").astype(float)
  return values.where(np.isfinite(values))
