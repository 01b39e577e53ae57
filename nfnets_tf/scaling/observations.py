"""The points of a study, out of any table that has a row for each run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from nfnets_tf.errors import UserError

_DONE = "done"


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of a table's columns.

  Attributes:
    compute: what a run cost.
    loss: what it ended with.
    model: name of its network.
    size: of its network, parameters or MACs.
    epochs: that it was trained for.
    rate: its learning rate, or None.
  """

  compute: str
  loss: str
  model: str
  size: str
  epochs: str
  rate: str | None


def read_points(
  table: pd.DataFrame, columns: Columns
) -> tuple[pd.DataFrame, dict[str, int]]:
  """Returns the usable rows, cheapest first, and why others are none.

  Args:
    table: any; where it has a column `state`, rows that are not "done" are
      left out.
    columns: which are which.

  Returns:
    Columns model, compute, loss, epochs, size, rate; and {why: number}.

  Raises:
    UserError: if a column does not exist.
  """
  names = dataclasses.asdict(columns)
  if missing := [n for n in names.values() if n is not None and n not in table]:
    raise UserError(
      f"the table has no column {missing[0]!r}, only"
      f" {', '.join(map(str, table.columns))}; bind the columns to those."
    )
  points = pd.DataFrame(
    {key: table[n] if n else np.nan for key, n in names.items()}
  )
  left_out = {}

  def keep(rows, why):
    if not rows.all():
      left_out[why] = int((~rows).sum())

  if "state" in table:
    done = table["state"] == _DONE
    keep(done, "not done")
    points = points[done]
  for name in ("compute", "loss", "size", "epochs", "rate"):
    points[name] = pd.to_numeric(points[name], errors="coerce")
  numbers = points[["compute", "loss", "size", "epochs"]]
  usable = np.isfinite(numbers).all(axis=1) & (numbers > 0).all(axis=1)
  keep(usable, "without positive numbers")
  points = points[usable & points["model"].notna()]
  return points.sort_values("compute", kind="stable"), left_out


def best_of_cells(points: pd.DataFrame) -> pd.DataFrame:
  """Returns the run of the lowest loss of each model and number of epochs."""
  ranked = points.sort_values("loss", kind="stable")
  best = ranked.drop_duplicates(["model", "epochs"])
  return best.sort_values("compute", kind="stable").reset_index(drop=True)


def best_rates(points: pd.DataFrame) -> pd.DataFrame:
  """Returns the best rate of each cell, and whether it is an edge."""
  rows = []
  for (model, epochs), runs in points.groupby(["model", "epochs"], sort=False):
    rates = runs["rate"].dropna()
    if rates.empty:
      continue
    best = runs.loc[runs["loss"].idxmin(), "rate"]
    edge = ""
    if rates.nunique() == 1:
      edge = "only"
    elif best in (rates.min(), rates.max()):
      edge = "lower" if best == rates.min() else "upper"
    rows.append((model, epochs, best, edge))
  return pd.DataFrame(rows, columns=["model", "epochs", "rate", "edge"])
