"""A scaling study: the runs of a table, and everything fitted to them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import allocation, power_laws
from nfnets_tf.scaling.allocation import Exponents, Surface
from nfnets_tf.scaling.outliers import split_outliers
from nfnets_tf.scaling.power_laws import Extrapolation, Law
from nfnets_tf.scaling.run_tables import (
  find_column,
  run_names,
  warn_of_unusable,
)

LOGGER = logging.getLogger("nfnets_tf")

_MAX_NAMED = 5
_WIDE = 8.0  # highest / lowest product of size and epochs
_FLAT = 0.2  # of its logarithm, in that of compute
_SAME_COMPUTE = 1.2  # highest / lowest of one model and budget
_NUMBERS = ("compute", "loss", "size", "epochs")


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
  table: pd.DataFrame, columns: RunColumns, *, warn: bool = True
) -> tuple[pd.DataFrame, dict[str, int]]:
  """Returns the usable runs, cheapest first, and the number of skipped rows.

  Args:
    table: a row for each run; where it has a column `state`, rows that are not
      "done" are skipped.
    columns: names of its columns; case and spaces around them do not matter.
    warn: whether to log a warning that names the first unusable rows.

  Returns:
    Columns model, compute, loss, epochs, size, rate, and name of the run, for
    messages; and {reason: rows}.

  Raises:
    UserError: if a column does not exist.
  """
  names = dataclasses.asdict(columns)
  actual = {key: n and find_column(table, n) for key, n in names.items()}
  missing = [names[key] for key, n in actual.items() if names[key] and not n]
  if missing:
    raise UserError(
      f"the table has no column {missing[0]!r}; bind RunColumns to its columns:"
      f" {', '.join(map(str, table.columns))}."
    )
  runs = pd.DataFrame(
    {key: table[n] if n else np.nan for key, n in actual.items()}
  )
  runs["name"] = run_names(table, runs)
  skipped = {}
  if (state := find_column(table, "state")) is not None:
    done = table[state].astype(str).str.strip().str.lower() == "done"
    skipped["not done"] = int((~done).sum())
    runs = runs[done]
  given = runs.copy()
  for name in (*_NUMBERS, "rate"):
    runs[name] = pd.to_numeric(runs[name], errors="coerce")
  numbers = runs[[*_NUMBERS]]
  usable = np.isfinite(numbers) & (numbers > 0)
  if warn:
    warn_of_unusable(given, usable)
  skipped["without positive numbers"] = int((~usable.all(axis=1)).sum())
  runs = runs[usable.all(axis=1)]
  skipped["without a model"] = int(runs["model"].isna().sum())
  runs = runs[runs["model"].notna()]
  copies = runs.drop(columns="name").duplicated()
  skipped["copies of another row"] = int(copies.sum())
  runs = runs[~copies].sort_values("compute", kind="stable")
  skipped = {reason: count for reason, count in skipped.items() if count}
  return runs.reset_index(drop=True), skipped


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
    outliers: the runs whose compute or loss contradicts all others; see
      `outliers.find_outliers`. They are not among the points, unless they were
      kept.
    frontier: the Pareto frontier of the points.
    rates: see `best_rates`; smallest models first.
    power: L = a C^-b of the frontier.
    offset: L = a C^-b + c of the frontier.
    extrapolation: of the expensive part of the frontier from the cheap part.
    allocation: see `allocation.optimal_allocation`.
    exponents: growth of the best size and epochs.
    surface: loss over size and epochs.
    outliers_kept: whether the outliers are among the points.
    other_laws: the power law and that with offset with the outliers if these
      are left out, without them if they are kept; without intervals.
  """

  points: pd.DataFrame
  skipped_rows: dict[str, int]
  outliers: pd.DataFrame
  frontier: pd.DataFrame
  rates: pd.DataFrame
  power: Law | None
  offset: Law | None
  extrapolation: Extrapolation
  allocation: pd.DataFrame
  exponents: Exponents | None
  surface: Surface | None
  outliers_kept: bool
  other_laws: tuple[Law | None, Law | None]

  def to_json(self) -> dict:
    """Returns every fitted coefficient with its interval."""
    fits = {
      "power_law": self.power,
      "offset_law": self.offset,
      "extrapolation": self.extrapolation,
      "allocation": self.exponents,
      "surface": self.surface,
    }
    if len(self.outliers):
      names = (f"{n}_{self._alternative}" for n in ("power_law", "offset_law"))
      fits.update(zip(names, self.other_laws))
    columns = ["name", "model", *_NUMBERS, "quantity", "expected"]
    return {
      "points": len(self.points),
      "skipped_rows": self.skipped_rows,
      "frontier_points": len(self.frontier),
      "outliers": self.outliers[columns].to_dict("records"),
      "outliers_kept": self.outliers_kept,
      "warnings": self.warnings(),
      **{name: fit and fit.to_json() for name, fit in fits.items()},
    }

  @property
  def _alternative(self) -> str:
    return "without_outliers" if self.outliers_kept else "with_outliers"

  def warnings(self) -> list[str]:
    """Returns a sentence for everything that makes the laws doubtful."""
    sentences = [self._describe_outlier(x) for x in self.outliers.itertuples()]
    computes = self.points["compute"].nunique()
    laws = [law for law in (self.power, self.offset) if law]
    if computes > 2 and self._is_compute_flat():
      sentences.append(
        "The computes are within a factor of"
        f" {self.points['compute'].max() / self.points['compute'].min():.3g},"
        " but size times epochs are not; expected computes, not their"
        " logarithms."
      )
    if len(self.points) > 2 and computes < 3:
      sentences.append(
        f"There is no law: it takes three different computes, but the"
        f" {len(self.points)} points have {computes}."
      )
    elif computes > 2 and not laws:
      sentences.append(
        f"There is no law, because cheaper points are as good as all but"
        f" {len(self.frontier)} of {len(self.points)}; expected losses that"
        " fall as compute grows."
      )
    elif laws and min(law.rms for law in laws) > power_laws.POOR_FIT:
      miss = np.expm1(min(law.rms for law in laws))
      sentences.append(
        f"The laws miss their own {len(self.frontier)} points by {miss:.0%}"
        " (rms), and which points are wrong cannot be told; do not use them"
        " before the table is corrected."
      )
    return sentences

  def _is_compute_flat(self) -> bool:
    """Returns whether compute hardly grows with size times epochs."""
    columns = self.points[["compute", "size", "epochs"]]
    compute, size, epochs = np.log(columns.to_numpy(float)).T
    return bool(
      np.ptp(size + epochs) > np.log(_WIDE)
      and np.ptp(compute) < _FLAT * np.ptp(size + epochs)
    )

  def log_warnings(self) -> None:
    """Logs the `warnings`."""
    for sentence in self.warnings():
      LOGGER.warning("%s", sentence)

  def _describe_outlier(self, point) -> str:
    value = getattr(point, point.quantity)
    ratio = value / point.expected
    off = f"{ratio - 1:+.0%}"
    if not 0.5 < ratio < 2:
      factor = f"{max(ratio, 1 / ratio):.3g}"
      off = f"{factor} times too {'low' if ratio < 1 else 'high'}"
    if point.quantity == "loss":
      where = f" at a compute of {point.compute:.4g}"
    else:  # any of the three may be the wrong one
      where = f" at a size of {point.size:.4g} and {point.epochs:g} epochs"
    done = "fitted nevertheless" if self.outliers_kept else "left out"
    return (
      f"{point.name} is an outlier, {done}: its {point.quantity} is"
      f" {value:.4g}{where}, but the other"
      f" points give {point.expected:.4g} ({off}); correct or drop the row."
    )

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
    if len(self.outliers):
      names = ", ".join(self.outliers["name"].head(_MAX_NAMED))
      done = "fitted" if self.outliers_kept else "left out"
      lines.insert(1, ("outliers", f"{len(self.outliers)}, {done}: {names}"))
      for name, law in zip(("law", "law with offset"), self.other_laws):
        text = f"{law.describe()}, rms {law.rms:.2%}" if law else too_few
        lines.append((f"{name} {self._alternative.replace('_', ' ')}", text))
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
  exclude_outliers: bool = True,
  warn: bool = True,
) -> Fits:
  """Fits all laws to a table.

  Args:
    table: see `read_runs`.
    columns: names of its columns.
    extrapolate_from: compute at and above which points are predicted from those
      below; None is the geometric mean of the lowest and the highest.
    resamples: of each bootstrap.
    seed: of the resamples.
    exclude_outliers: whether runs that contradict all others are left out.
    warn: whether to log the `Fits.warnings`, and rows that cannot be used.

  Raises:
    UserError: if a column does not exist.
  """
  runs, skipped_rows = read_runs(table, columns, warn=warn)
  others, outliers = split_outliers(runs)
  kept, others = (others, runs) if exclude_outliers else (runs, others)
  points = best_runs(kept)
  frontier = allocation.pareto_frontier(points)
  curve = frontier["compute"], frontier["loss"]
  options = {"resamples": resamples, "seed": seed}
  power, offset = _fit_laws(frontier, **options)
  surface = allocation.fit_surface(points)
  fits = Fits(
    points=points,
    skipped_rows=skipped_rows,
    outliers=outliers,
    outliers_kept=not exclude_outliers,
    other_laws=_fit_laws(allocation.pareto_frontier(best_runs(others))),
    frontier=frontier,
    rates=best_rates(kept.sort_values("size", kind="stable")),
    power=power,
    offset=offset,
    extrapolation=power_laws.extrapolate(
      *curve, threshold=extrapolate_from, **options
    ),
    allocation=allocation.optimal_allocation(points),
    exponents=allocation.bootstrap_exponents(points, **options),
    surface=allocation.bootstrap_surface(surface, points, **options),
  )
  if warn:
    _warn_of_merged(kept)
    fits.log_warnings()
  return fits


def _warn_of_merged(runs: pd.DataFrame) -> None:
  """Logs a warning if model and epochs do not tell runs apart."""
  groups = runs.groupby(["model", "epochs"])["compute"].agg(["min", "max"])
  wide = groups[groups["max"] > _SAME_COMPUTE * groups["min"]]
  if len(wide):
    model, epochs = wide.index[0]
    low, high = wide.iloc[0]
    LOGGER.warning(
      "Of the runs of one model and number of epochs only the best one counts,"
      " but those of %s at %g epochs have computes of %.4g to %.4g; expected a"
      " column model that tells different networks apart.",
      model,
      epochs,
      low,
      high,
    )


def _fit_laws(
  frontier: pd.DataFrame, *, resamples: int = 0, seed: int = 0
) -> tuple[Law | None, Law | None]:
  """Returns the power law and that with offset of a frontier."""
  curve = frontier["compute"], frontier["loss"]

  def fit(kind):
    law = kind(*curve, warn=False)
    return power_laws.bootstrap_law(law, *curve, resamples=resamples, seed=seed)

  return fit(power_laws.fit_power_law), fit(power_laws.fit_offset_law)
