"""A sweep's state in a table of trials and one of grid points."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from numbers import Real

import numpy as np
import pandas as pd

from nfnets_tf.scaling.study import best_rates

STATES = ("done", "failed", "running", "pending")


@dataclasses.dataclass(frozen=True)
class SweepStatus:
  """Snapshot of a sweep, from which its report is rendered.

  A grid point ("cell") is one combination of the axes' values; where a macro is
  tuned it has several trials ("points"), otherwise one of the same name.

  Attributes:
    name: of the sweep, shown as the title.
    loss: column of `results` that is compared; lower is better.
    tuned: macro that is tuned at every grid point, or None.
    grid: {name of a grid point: {macro: value}}, in the grid's order.
    results: the table results.csv, a row per known trial: point, cell, state
      ("done", "failed", "running" or "pending"), the macros, the plan's
      numbers, the result's numbers, seconds, reason.
    diverged: names of the failed trials that diverged.
    plan: the table plan.csv, a row per grid point: point, the macros,
      parameters, macs, flops, tpu_v4_core_hours, ...; None before planning.
    metrics_files: {trial: path of its run's metrics.jsonl}, the source of the
      learning curves; files that do not exist are skipped.
    config_text: the resolved configuration.
  """

  name: str
  loss: str
  tuned: str | None
  grid: Mapping[str, Mapping[str, object]]
  results: pd.DataFrame
  diverged: Collection[str]
  plan: pd.DataFrame | None
  metrics_files: Mapping[str, str]
  config_text: str


@dataclasses.dataclass(frozen=True)
class Summary:
  """A sweep in columns of fixed names, independent of its axes.

  Attributes:
    x_macro: macro along a curve: EPOCHS, else the last axis of numbers, else
      the last axis; None if the grid has one point.
    series: labels of the curves, one per combination of the other axes, in the
      grid's order.
    trials: a row per trial: point, cell, series, state, diverged, tuned_value,
      loss, compute (FLOPs), size (MACs), epochs, seconds, reason. Only trials
      that are done have a loss.
    cells: a row per grid point, in the grid's order: cell, series, x (value of
      `x_macro`), compute, size, epochs; point, loss and tuned_value of its best
      trial, if any; trials (number done), edge (see `study.best_rates`), and
      open: whether trials are still to come.
  """

  x_macro: str | None
  series: tuple[str, ...]
  trials: pd.DataFrame
  cells: pd.DataFrame

  @property
  def best(self) -> pd.DataFrame:
    """The grid points that have a loss."""
    return self.cells[self.cells["loss"].notna()]

  def counts(self) -> dict[str, int]:
    """Returns {state: number of trials}, of all four states."""
    return {s: int((self.trials["state"] == s).sum()) for s in STATES}

  def decided_runs(self) -> pd.DataFrame:
    """Returns the finished trials of the grid points that are not open."""
    decided = self.cells.loc[~self.cells["open"], "cell"]
    runs = self.trials[self.trials["loss"].notna()]
    return runs[runs["cell"].isin(decided)].reset_index(drop=True)


def summarize(status: SweepStatus) -> Summary:
  """Returns the trials and grid points of a sweep in fixed columns."""
  grid, results = status.grid, status.results
  x_macro = _x_macro(grid)
  series = _series(grid, x_macro)
  results = results[results["cell"].isin(list(grid))].reset_index(drop=True)
  epochs = results["cell"].map(lambda cell: grid[cell].get("EPOCHS"))
  done = results["state"] == "done"
  trials = pd.DataFrame(
    {
      **results[["point", "cell", "state"]],
      "series": results["cell"].map(series),
      "diverged": results["point"].isin(list(status.diverged)),
      "tuned_value": _numbers(results, status.tuned),
      "loss": _numbers(results, status.loss).where(done),
      "compute": _numbers(results, "flops"),
      "size": _numbers(results, "macs"),
      "epochs": _numbers(results.assign(epochs_=epochs), "epochs_").fillna(
        _numbers(results, "epochs")
      ),
      "seconds": _numbers(results, "seconds"),
      "reason": results.get("reason", pd.Series(dtype=object)),
    }
  )
  cells = pd.DataFrame(
    {
      "cell": list(grid),
      "series": [series[cell] for cell in grid],
      "x": pd.Series([b.get(x_macro) for b in grid.values()], dtype=object),
    }
  )
  costs = trials.drop_duplicates("cell").set_index("cell")
  cells = cells.join(costs[["compute", "size", "epochs"]], on="cell")
  best = trials.dropna(subset=["loss"]).sort_values("loss", kind="stable")
  best = best.drop_duplicates("cell").set_index("cell")
  cells = cells.join(best[["point", "loss", "tuned_value"]], on="cell")
  cells["trials"] = [int((trials["cell"][done] == c).sum()) for c in grid]
  unfinished = trials["state"].isin(["running", "pending"])
  cells["open"] = cells["cell"].isin(trials["cell"][unfinished])
  cells["edge"] = cells["cell"].map(_edges(trials)).fillna("")
  return Summary(x_macro, tuple(dict.fromkeys(series.values())), trials, cells)


def _x_macro(grid) -> str | None:
  varying = _varying(grid)
  numeric = [m for m, values in varying.items() if all(map(is_number, values))]
  if "EPOCHS" in numeric:
    return "EPOCHS"
  return next(reversed(numeric or list(varying)), None)


def _series(grid, x_macro) -> dict[str, str]:
  """Returns {name of a grid point: label of its curve}."""
  macros = [macro for macro in _varying(grid) if macro != x_macro]
  labels = {}
  for cell, bindings in grid.items():
    values = {m: bindings[m] for m in macros if m in bindings}
    if len(macros) == 1 and values:
      labels[cell] = str(values[macros[0]])
    else:
      text = ", ".join(f"{m} = {value}" for m, value in values.items())
      labels[cell] = text or "all"
  return labels


def _varying(grid) -> dict[str, list]:
  """Returns {macro: its values} of the macros that differ in the grid."""
  values = {}
  for bindings in grid.values():
    for macro, value in bindings.items():
      values.setdefault(macro, {})[repr(value)] = value
  return {
    macro: list(distinct.values())
    for macro, distinct in values.items()
    if len(distinct) > 1 or any(macro not in b for b in grid.values())
  }


def _edges(trials) -> dict[str, str]:
  """Returns {grid point: edge of its best value}; diverged trials count."""
  tried = trials[trials["loss"].notna() | trials["diverged"]]
  tried = tried.assign(loss=tried["loss"].fillna(np.inf))
  tried = tried[tried.groupby("cell")["loss"].transform("min") < np.inf]
  names = {"cell": "model", "tuned_value": "rate"}
  rates = best_rates(
    tried[["cell", "tuned_value", "loss"]]
    .rename(columns=names)
    .assign(epochs=0)
  )
  return dict(zip(rates["model"], rates["edge"]))


def is_number(value) -> bool:
  """Returns whether a value is a real number, and not a boolean."""
  return isinstance(value, Real) and not isinstance(value, bool)


def _numbers(table: pd.DataFrame, column: str | None) -> pd.Series:
  """Returns a column as finite numbers or NaN; NaN if it does not exist."""
  if column not in table:
    return pd.Series(np.nan, index=table.index)
  values = pd.to_numeric(table[column], errors="coerce").astype(float)
  return values.where(np.isfinite(values))
