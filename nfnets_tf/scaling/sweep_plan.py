"""What a sweep will cost, point by point, before anything runs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import pandas as pd
import tensorflow as tf

from nfnets_tf.fileio import report_write_errors, write_atomically
from nfnets_tf.scaling.board import DONE, PENDING, RUNNING, Board
from nfnets_tf.scaling.points import Point

_SHOWN = {
  "parameters": ("parameters", "{:,.0f}"),
  "macs": ("GMACs", None),
  "images": ("images", "{:,.0f}"),
  "steps": ("steps", "{:,.0f}"),
  "flops": ("FLOPs", "{:.3g}"),
  "tpu_v4_core_hours": ("core-hours", None),
  "utilization": ("of peak", "{:.1%}"),
  "memory_bytes": ("GB", None),
  "memory_bytes_an_image": ("MB/image", None),
  "cost": ("cost", "{:,.2f}"),
}
_STATES = ["point", "cell", "state"]
_UNITS = {"macs": 1e9, "memory_bytes": 1e9, "memory_bytes_an_image": 1e6}


def plan_sweep(
  cells: Sequence[Point], figures: Callable[[Point], dict], price: float | None
) -> pd.DataFrame:
  """Returns a row for each point of the grid.

  Args:
    cells: the grid's points.
    figures: of one of them, as `train.TrainJob.figures`.
    price: of a TPU-v4 core-hour, or None.

  Returns:
    point, the axes, the figures, and cost if there is a price. Where a number
    is tuned, they are those of one trial.
  """
  rows = []
  for cell in cells:
    row = {"point": cell.name, **cell.bindings, **figures(cell)}
    if price is not None:
      row["cost"] = price * row["tpu_v4_core_hours"]
    rows.append(row)
  return pd.DataFrame(rows)


def describe_plan(plan: pd.DataFrame, *, trials: int) -> str:
  """Returns the plan as a table to be read, and the sum.

  Args:
    plan: of `plan_sweep`.
    trials: at least, of each point.
  """
  shown = pd.DataFrame({"point": plan["point"]})
  for column, (title, form) in _SHOWN.items():
    if column in plan:
      values = plan[column] / _UNITS.get(column, 1.0)
      write = _readable if form is None else form.format
      shown[title] = [write(value) for value in values]
  shown.index = range(1, len(shown) + 1)
  hours = plan["tpu_v4_core_hours"].sum()
  runs = f"{len(plan)} points"
  if trials > 1:
    runs += f", of {trials} trials each at least"
  total = f"{runs}: {trials * plan['flops'].sum():.3g} FLOPs,"
  total += f" {_readable(trials * hours)} TPU-v4 core-hours"
  if "cost" in plan:
    total += f", {trials * plan['cost'].sum():,.2f} by the price given"
  return f"{shown.to_string()}\n\n{total}"


def _readable(value: float) -> str:
  return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def write_table(table: pd.DataFrame, path: str, root: str) -> None:
  """Writes a table as CSV, its folder too."""
  with report_write_errors(root):
    tf.io.gfile.makedirs(root)
  write_atomically(path, table.to_csv(index=False))


def read_table(path: str) -> pd.DataFrame | None:
  """Returns the table in a CSV file, None if there is none."""
  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path, "rb") as file:
    # In blocks: `read()` asks how long the file is that is there by now.
    content = b"".join(iter(lambda: file.read(1 << 20), b""))
  return pd.read_csv(io.BytesIO(content), float_precision="round_trip")


def gather_results(
  board: Board, cells: Sequence[Point], open_points: Sequence[Point]
) -> pd.DataFrame:
  """Returns a row for each point that is finished or left to do.

  Args:
    board: state of the sweep.
    cells: the grid's points.
    open_points: that are known to be left to do.

  Returns:
    point, cell, state, the bindings, what the plan says of the cell, the
    numbers of the result, and the reason of a failure.
  """
  plan = read_table(board.plan)
  costs = {}
  if plan is not None:
    costs = plan.set_index("point").to_dict("index")
  known, rows = {cell.name for cell in cells}, []
  for name, record in board.records().items():
    if record["cell"] not in known:
      continue  # of an axis that has been cut
    numbers = {
      k: v
      for k, v in record.get("result", {}).items()
      if isinstance(v, (int, float))
    }
    rows.append(
      {
        "point": name,
        "cell": record["cell"],
        "state": record["state"],
        **costs.get(record["cell"], {}),
        **record["bindings"],
        **numbers,
        "seconds": record.get("seconds"),
        "reason": record.get("reason"),
      }
    )
  for point in open_points:
    state = RUNNING if board.claims.owner(point.name) else PENDING
    row = {"point": point.name, "cell": point.cell, "state": state}
    rows.append({**row, **costs.get(point.cell, {}), **point.bindings})
  return pd.DataFrame(rows, columns=None if rows else _STATES)


def describe_states(results: pd.DataFrame, loss: str) -> str:
  """Returns the points and their states as a table to be read.

  Args:
    results: of `gather_results`.
    loss: name of the column that is compared.
  """
  shown = results[["point", "state"]].copy()
  losses = results.get(loss, [math.nan] * len(shown))
  shown[loss] = [
    f"{value:.4f}" if state == DONE else ""
    for value, state in zip(losses, shown["state"])
  ]
  if "reason" in results:
    shown["reason"] = [_short(reason) for reason in results["reason"]]
  shown.index = range(1, len(shown) + 1)
  counts = ", ".join(
    f"{n} {s}" for s, n in shown["state"].value_counts().items()
  )
  return f"{shown.to_string()}\n\n{counts}"


def _short(reason) -> str:
  text = reason if isinstance(reason, str) else ""
  return text if len(text) <= 60 else f"{text[:57]}..."
