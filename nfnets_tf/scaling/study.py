"""A scaling study: the runs of a table, and everything fitted to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import allocation, power_laws
from nfnets_tf.scaling.allocation import Exponents, Surface
from nfnets_tf.scaling.power_laws import Extrapolation, Law


@dataclasses.dataclass(frozen=True)
class RunColumns:
  """Names of the columns of a table with a row for each run.

  Attributes:
    compute: cost of the run, in any unit.
    loss: final loss.
    model: name of the network.
    size: of the network, in parameters or MACs.
    epochs: that the network was trained for.
    rate: peak learning rate; None if the table has none.
  """

  compute: str
  loss: str
  model: str
  size: str
  epochs: str
  rate: str | None


def read_runs(
  table: pd.DataFrame, columns: RunColumns
) -> tuple[pd.DataFrame, dict[str, int]]:
  """Returns the usable runs, cheapest first, and the number of skipped rows.

  Args:
    table: a row for each run; where it has a column `state`, rows that are not
      "done" are skipped.
    columns: names of its columns.

  Returns:
    Columns model, compute, loss, epochs, size, rate; and {reason: rows}.

  Raises:
    UserError: if a column does not exist.
  """
  names = dataclasses.asdict(columns)
  if missing := [n for n in names.values() if n is not None and n not in table]:
    raise UserError(
      f"the table has no column {missing[0]!r}; bind RunColumns to its columns:"
      f" {', '.join(map(str, table.columns))}."
    )
  runs = pd.DataFrame(
    {key: table[n] if n else np.nan for key, n in names.items()}
  )
  skipped = {}
  if "state" in table:
    done = table["state"] == "done"
    skipped["not done"] = int((~done).sum())
    runs = runs[done]
  for name in ("compute", "loss", "size", "epochs", "rate"):
    runs[name] = pd.to_numeric(runs[name], errors="coerce")
  numbers = runs[["compute", "loss", "size", "epochs"]]
  usable = np.isfinite(numbers).all(axis=1) & (numbers > 0).all(axis=1)
  skipped["without positive numbers"] = int((~usable).sum())
  runs = runs[usable & runs["model"].notna()]
  skipped = {reason: count for reason, count in skipped.items() if count}
  return runs.sort_values("compute", kind="stable"), skipped


def best_runs(runs: pd.DataFrame) -> pd.DataFrame:
  """Returns the run of lowest loss of each model and number of epochs."""
  ranked = runs.sort_values("loss", kind="stable")
  best = ranked.drop_duplicates(["model", "epochs"])
  return best.sort_values("compute", kind="stable").reset_index(drop=True)


def best_rates(
  runs: pd.DataFrame, by: Sequence[str] = ("model", "epochs")
) -> pd.DataFrame:
  """Returns the best learning rate of each model and number of epochs.

  Args:
    runs: columns rate and loss, and those that group them.
    by: columns that group the runs.

  Returns:
    The columns `by`, rate, and edge: "lower" or "upper" if the rate is the
    lowest or highest tried, "only" if no other was tried, else "".
  """
  rows = []
  for group, trials in runs.groupby(list(by), sort=False):
    rates = trials["rate"].dropna()
    if rates.empty:
      continue
    best = trials.loc[trials["loss"].idxmin(), "rate"]
    edge = ""
    if rates.nunique() == 1:
      edge = "only"
    elif best in (rates.min(), rates.max()):
      edge = "lower" if best == rates.min() else "upper"
    rows.append((*group, best, edge))
  return pd.DataFrame(rows, columns=[*by, "rate", "edge"])


@dataclasses.dataclass(frozen=True)
class Fits:
  """Everything fitted to a study; None where there are too few points.

  Attributes:
    points: the best run of each model and number of epochs: columns model,
      compute, loss, epochs, size and rate, cheapest first.
    skipped_rows: {reason: number of the table's rows that are not used}.
    frontier: the Pareto frontier of the points.
    rates: see `best_rates`; smallest models first.
    power: L = a C^-b of the frontier.
    offset: L = a C^-b + c of the frontier.
    extrapolation: of the expensive part of the frontier from the cheap part.
    allocation: see `allocation.optimal_allocation`.
    exponents: growth of the best size and epochs.
    surface: loss over size and epochs.
  """

  points: pd.DataFrame
  skipped_rows: dict[str, int]
  frontier: pd.DataFrame
  rates: pd.DataFrame
  power: Law | None
  offset: Law | None
  extrapolation: Extrapolation
  allocation: pd.DataFrame
  exponents: Exponents | None
  surface: Surface | None

  def to_json(self) -> dict:
    """Returns every fitted coefficient with its interval."""
    fits = {
      "power_law": self.power,
      "offset_law": self.offset,
      "extrapolation": self.extrapolation,
      "allocation": self.exponents,
      "surface": self.surface,
    }
    return {
      "points": len(self.points),
      "skipped_rows": self.skipped_rows,
      "frontier_points": len(self.frontier),
      **{name: fit and fit.to_json() for name, fit in fits.items()},
    }

  def describe(self) -> list[tuple[str, str]]:
    """Returns (name, text) of the main results."""
    too_few = "not enough points"
    lines = [
      ("points", f"{len(self.points)}, {len(self.frontier)} on the frontier")
    ]
    lines += [
      ("skipped rows", f"{count}, {reason}")
      for reason, count in self.skipped_rows.items()
    ]
    for name, law in (("law", self.power), ("law with offset", self.offset)):
      text = f"{law.describe()}, rms {law.rms:.2%}" if law else too_few
      lines.append((name, text))
    for name, law in (
      ("extrapolation", self.extrapolation.power),
      ("extrapolation with offset", self.extrapolation.offset),
    ):
      lines.append((name, self.extrapolation.describe(law)))
    for name, fit in (("optima", self.exponents), ("surface", self.surface)):
      text = _describe_exponents(fit.to_json()) if fit else too_few
      lines.append((f"best size and epochs by {name}", text))
    return lines


def _describe_exponents(content: dict) -> str:
  """Returns the growth of size and epochs of a fit's JSON, in words."""
  parts = []
  for name in ("size", "epochs"):
    entry = content[f"{name}_exponent"]
    text = f"{name} ~ C^{entry['value']:.3g}"
    if entry["interval"] is not None:
      text += " ({:.3g} to {:.3g})".format(*entry["interval"])
    parts.append(text)
  return ", ".join(parts)


def fit_study(
  table: pd.DataFrame,
  columns: RunColumns,
  *,
  extrapolate_from: float | None,
  resamples: int,
  seed: int,
) -> Fits:
  """Fits all laws to a table.

  Args:
    table: see `read_runs`.
    columns: names of its columns.
    extrapolate_from: compute at and above which points are predicted from those
      below; None is the geometric mean of the lowest and the highest.
    resamples: of each bootstrap.
    seed: of the resamples.

  Raises:
    UserError: if a column does not exist.
  """
  runs, skipped_rows = read_runs(table, columns)
  points = best_runs(runs)
  frontier = allocation.pareto_frontier(points)
  curve = frontier["compute"], frontier["loss"]
  options = {"resamples": resamples, "seed": seed}
  surface = allocation.fit_surface(points)

  def fit(kind: Callable):
    return power_laws.bootstrap_law(kind(*curve), *curve, **options)

  return Fits(
    points=points,
    skipped_rows=skipped_rows,
    frontier=frontier,
    rates=best_rates(runs.sort_values("size", kind="stable")),
    power=fit(power_laws.fit_power_law),
    offset=fit(power_laws.fit_offset_law),
    extrapolation=power_laws.extrapolate(
      *curve, threshold=extrapolate_from, **options
    ),
    allocation=allocation.optimal_allocation(points),
    exponents=allocation.bootstrap_exponents(points, **options),
    surface=allocation.bootstrap_surface(surface, points, **options),
  )
