"""What is known of a sweep so far: its curves, and the best of each cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from numbers import Real

import pandas as pd

from nfnets_tf.scaling.sweep import GridPoint
from nfnets_tf.scaling.sweep_report import SweepStatus
from nfnets_tf.scaling.sweep_store import (
  DONE,
  FAILED,
  PENDING,
  RUNNING,
  point_name,
)

STATES = (DONE, FAILED, RUNNING, PENDING)

_EPOCHS = "EPOCHS"
_NUMBERS = {"compute": "flops", "macs": "macs", "parameters": "parameters"}
_TRIALS = (
  "point cell curve along epochs value loss compute macs parameters state"
  " diverged seconds reason"
).split()
_CELLS = (
  "cell curve along epochs value loss compute macs parameters point trials"
  " edge open"
).split()


@dataclasses.dataclass(frozen=True)
class Overview:
  """A sweep in columns of fixed names, whatever its axes are called.

  Attributes:
    loss: name of what is compared.
    tuned: the macro that is tuned, or None.
    curves: labels of the curves, in the grid's order.
    running: the macro along which a curve runs, None if there is one cell.
    across: what curves are drawn against: "compute" if it is known and differs
      along them, else "along", the values of `running`.
    trials: a row for each known point: point, cell, curve, along, epochs, value
      (of what is tuned), loss, compute (FLOPs), macs, parameters, state,
      diverged, seconds, reason. A loss is finite or not a number.
    cells: a row for each cell in the grid's order: the same of its best trial,
      as far as there is one, and trials (how many are done), edge (whether a
      better value may lie beyond those that were tried), open (whether there is
      more to run).
  """

  loss: str
  tuned: str | None
  curves: tuple[str, ...]
  running: str | None
  across: str
  trials: pd.DataFrame
  cells: pd.DataFrame

  @property
  def best(self) -> pd.DataFrame:
    """The cells that have a loss."""
    return self.cells[self.cells["loss"].notna()]

  def counts(self) -> dict[str, int]:
    """Returns {state: number of points}, of all four."""
    found = self.trials["state"].value_counts()
    return {state: int(found.get(state, 0)) for state in STATES}


def overview_of(status: SweepStatus) -> Overview:
  """Returns what is known of a sweep."""
  points = [GridPoint(name, dict(b)) for name, b in status.grid.items()]
  running = _running_axis(points)
  labels = _curve_labels(points, running)
  known = {point.name: point for point in points}
  rows = []
  for row in status.results.to_dict("records"):
    point = known.get(row["cell"])
    if point is not None:
      trial = _trial(row, point, running, status.tuned, status.loss)
      trial["curve"] = labels[point.name]
      trial["diverged"] = row["point"] in status.diverged
      rows.append(trial)
  trials = pd.DataFrame(rows, columns=_TRIALS)
  cells = [
    _cell(point, labels[point.name], running, trials, status.tuned)
    for point in points
  ]
  cells = pd.DataFrame(cells, columns=_CELLS)
  by_curve = cells.groupby("curve")["compute"].nunique()
  across = "compute" if (by_curve > 1).any() else "along"
  curves = tuple(dict.fromkeys(labels.values()))
  return Overview(
    status.loss, status.tuned, curves, running, across, trials, cells
  )


def _running_axis(cells: Sequence[GridPoint]) -> str | None:
  """Returns the axis of epochs, else the last of numbers, else the last."""
  varying = _varying(cells)
  numbers = [m for m, vs in varying.items() if all(map(_is_number, vs))]
  if _EPOCHS in numbers:
    return _EPOCHS
  return next(reversed(numbers or list(varying)), None)


def _curve_labels(cells, running) -> dict[str, str]:
  """Returns {name of a cell: label of its curve}."""
  others = [macro for macro in _varying(cells) if macro != running]
  found = {}
  for cell in cells:
    own = {m: cell.bindings[m] for m in others if m in cell.bindings}
    alone = len(own) == 1 and len(others) == 1
    label = str(*own.values()) if alone else point_name(own)
    found[cell.name] = label or "all"
  return found


def _varying(cells) -> dict[str, list]:
  """Returns {macro: its values} of all that differ between cells."""
  values = {}
  for cell in cells:
    for macro, value in cell.bindings.items():
      values.setdefault(macro, {})[repr(value)] = value
  shared = {m for m in values if all(m in cell.bindings for cell in cells)}
  return {
    macro: list(found.values())
    for macro, found in values.items()
    if len(found) > 1 or macro not in shared
  }


def _trial(row, cell, running, tuned, loss) -> dict:
  state = row["state"]
  numbers = {ours: _number(row.get(name)) for ours, name in _NUMBERS.items()}
  epochs = _number(row.get("epochs"))
  if math.isnan(epochs):
    epochs = _number(cell.bindings.get(_EPOCHS))
  reason = row.get("reason")
  return {
    "point": row["point"],
    "cell": cell.name,
    "along": cell.bindings.get(running),
    "epochs": epochs,
    "value": _number(row.get(tuned)),
    "loss": _number(row.get(loss)) if state == DONE else math.nan,
    **numbers,
    "state": state,
    "seconds": _number(row.get("seconds")),
    "reason": reason if isinstance(reason, str) else "",
  }


def _cell(cell, label, running, trials, tuned) -> dict:
  own = trials[trials["cell"] == cell.name]
  # What the plan says is the same in all rows.
  told = own.iloc[0].to_dict() if len(own) else {}
  told.update(value=math.nan, loss=math.nan, point=None)
  if own["loss"].notna().any():
    told = own.loc[own["loss"].astype(float).idxmin()].to_dict()
  tried = own.loc[own["loss"].notna() | own["diverged"].astype(bool), "value"]
  at_edge = told["value"] in (tried.min(), tried.max())
  return {
    **{name: told.get(name, math.nan) for name in _CELLS},
    "cell": cell.name,
    "curve": label,
    "along": cell.bindings.get(running),
    "trials": int((own["state"] == DONE).sum()),
    "edge": bool(tuned and told["point"] and at_edge),
    "open": bool(own["state"].isin((RUNNING, PENDING)).any()),
  }


def _is_number(value) -> bool:
  return isinstance(value, Real) and not isinstance(value, bool)


def _number(value) -> float:
  finite = _is_number(value) and math.isfinite(value)
  return float(value) if finite else math.nan
