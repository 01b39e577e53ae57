"""The HTML report of a sweep: states, figures, tables, configuration."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Callable

import jinja2
import markupsafe
import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from nfnets_tf.errors import require_int
from nfnets_tf.fileio import write_atomically
from nfnets_tf.scaling import plots
from nfnets_tf.scaling.study import Fits, RunColumns, fit_study
from nfnets_tf.scaling.sweep_summary import (
  Summary,
  SweepStatus,
  is_number,
  summarize,
)
from nfnets_tf.train.run_log import read_records

LOGGER = logging.getLogger("nfnets_tf")

_COLUMNS = RunColumns(
  compute="compute",
  loss="loss",
  model="series",
  size="size",
  epochs="epochs",
  rate="tuned_value",
)
_MAX_PANELS = 12  # figures of a search, one per series
_TITLES = {
  "macs": "MACs",
  "flops": "FLOPs",
  "tpu_v4_core_hours": "TPU-v4 core-hours",
  "memory_bytes": "memory (bytes)",
  "memory_bytes_per_image": "memory per image (bytes)",
}
_SUMMED = ("images", "steps", "flops", "tpu_v4_core_hours", "cost")


class SweepReport:
  """Writes report.html, a self-contained page.

  Args:
    resamples: of the bootstraps for the intervals of the laws, at least 1.
    seed: of the resamples.
    refresh_seconds: interval at which a browser reloads the page while trials
      are left to run; None never reloads.

  Raises:
    UserError: if an argument is out of range.
  """

  def __init__(self, *, resamples: int, seed: int, refresh_seconds: int | None):
    require_int("SweepReport.resamples", resamples, 1)
    require_int("SweepReport.seed", seed, 0)
    if refresh_seconds is not None:
      require_int("SweepReport.refresh_seconds", refresh_seconds, 1)
    self.resamples, self.seed = resamples, seed
    self.refresh_seconds = refresh_seconds
    self._fits: tuple[pd.DataFrame, Fits] | None = None
    self._curves: dict[str, list[dict]] = {}  # of trials that are done

  def __call__(self, status: SweepStatus, path: str) -> None:
    """Writes the page; logs a warning if that fails.

    Args:
      status: of the sweep.
      path: of the page, local or gs://.
    """
    try:
      write_atomically(path, self.render(status))
    except Exception as error:  # a sweep must not fail for its report
      LOGGER.warning("The report %s was not written: %s", path, error)

  def render(self, status: SweepStatus) -> str:
    """Returns the page as HTML."""
    summary = summarize(status)
    counts = summary.counts()
    open_trials = counts["running"] + counts["pending"]
    fits = self._fit(summary)
    failed = summary.trials[summary.trials["state"] == "failed"]
    return (
      _environment()
      .get_template("sweep_report.html.j2")
      .render(
        status=status,
        summary=summary,
        counts=counts,
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        refresh_seconds=self.refresh_seconds if open_trials else None,
        tiles=_tiles(status, summary),
        failures=failed[~failed["diverged"]].to_dict("records"),
        diverged=failed[failed["diverged"]].to_dict("records"),
        matrix=_matrix(summary),
        figures=self._figures(status, summary, fits),
        laws=fits.describe() if len(fits.points) else [],
        trials=_trials_table(status, summary),
        plan=_plan_table(status.plan),
      )
    )

  def _fit(self, summary: Summary) -> Fits:
    runs = summary.decided_runs()
    if self._fits is None or not runs.equals(self._fits[0]):
      fits = fit_study(
        runs,
        _COLUMNS,
        extrapolate_from=None,
        resamples=self.resamples,
        seed=self.seed,
      )
      self._fits = runs, fits
    return self._fits[1]

  def _figures(self, status, summary, fits) -> list[dict]:
    """Returns title, svg and width of every figure that can be drawn."""
    plotters: dict[str, Callable[[], Figure | None]] = {
      "Best loss of each grid point": lambda: _plot_losses(
        status, summary, fits
      ),
      "Learning curves": lambda: self._plot_learning_curves(status, summary),
      f"Best {status.tuned}": lambda: _plot_rates(status, summary),
      "Best size and epochs": lambda: _plot_allocation(summary, fits),
      **_tuning_plotters(status, summary),
    }
    figures = []
    for title, plot in plotters.items():
      try:
        figure = plot()
      except Exception as error:  # the rest of the page is still worth reading
        LOGGER.warning("%s: not in the report: %r", title, error)
        continue
      if figure is not None:
        svg = plots.to_svg(figure, f"figure{len(figures)}")
        wide = figure.get_figwidth() > 9.0
        figures.append(
          {"title": title, "svg": markupsafe.Markup(svg), "wide": wide}
        )
    return figures

  def _plot_learning_curves(self, status, summary) -> Figure | None:
    """Plots the best trial of every grid point, and those that are running."""
    trials = summary.trials.set_index("point")
    shown = list(summary.best["point"])
    shown += list(trials.index[trials["state"] == "running"])
    runs = {}
    for point in dict.fromkeys(shown):
      if records := self._read_metrics(
        status, point, trials.at[point, "state"]
      ):
        runs[point] = records
    heldout = any(
      sum(status.loss in record for record in records) > 1
      for records in runs.values()
    )
    loss = status.loss if heldout else "loss"
    rows = [
      (point, trials.at[point, "series"], record["step"], record[loss])
      for point, records in runs.items()
      for record in records
      if record.get(loss) is not None and record["step"] > 0
    ]
    if not rows:
      return None
    curves = pd.DataFrame(rows, columns=["run", "model", "step", "loss"])
    label = plots.axis_label(loss) if heldout else "training loss (nats)"
    labels = {"step": "step", "loss": label}
    models = [s for s in summary.series if s in set(curves["model"])]
    return plots.plot_learning_curves(curves, models=models, labels=labels)

  def _read_metrics(self, status, point: str, state: str) -> list[dict]:
    path = status.metrics_files.get(point)
    if path is None:
      return []
    if point in self._curves:
      return self._curves[point]
    records = read_records(path)
    if state == "done":  # its file will not change
      self._curves[point] = records
    return records


def _x_values(summary: Summary, cells: pd.DataFrame) -> tuple[pd.Series, bool]:
  """Returns the horizontal places of grid points; whether they are FLOPs."""
  by_series = summary.cells.groupby("series")["compute"].nunique()
  if (by_series > 1).any():
    return cells["compute"], True
  if summary.cells["x"].map(is_number).all():
    return cells["x"].astype(float), False
  return cells["x"].map(str), False


def _plot_losses(status, summary, fits) -> Figure | None:
  places, by_compute = _x_values(summary, summary.best)
  points = summary.best.assign(model=summary.best["series"], compute=places)
  points = points.dropna(subset=["compute"])
  if points.empty:
    return None
  axis = "flops" if by_compute else summary.x_macro or ""
  return plots.plot_losses(
    points,
    models=[s for s in summary.series if s in set(points["series"])],
    labels={
      "compute": plots.axis_label(axis),
      "loss": plots.axis_label(status.loss),
    },
    power=fits.power if by_compute else None,
    offset=fits.offset if by_compute else None,
  )


def _plot_rates(status, summary) -> Figure | None:
  rates = summary.best.assign(
    model=summary.best["series"], rate=summary.best["tuned_value"]
  ).dropna(subset=["epochs"])
  if status.tuned is None or rates["epochs"].nunique() < 2:
    return None
  labels = {
    "epochs": plots.axis_label("EPOCHS"),
    "rate": plots.axis_label(status.tuned),
  }
  models = [s for s in summary.series if s in set(rates["series"])]
  return plots.plot_rates(rates, models=models, labels=labels)


def _plot_allocation(summary, fits) -> Figure | None:
  if not (fits.allocation["state"] == "interior").any():
    return None
  columns = dataclasses.replace(
    _COLUMNS, compute="flops", size="macs", epochs="EPOCHS"
  )
  models = [s for s in summary.series if s in set(fits.points["model"])]
  return plots.plot_allocation(fits, columns, models=models)


def _tuning_plotters(status, summary) -> dict[str, Callable[[], Figure]]:
  """Returns {title: plotter} of the search at each series' grid points."""
  if status.tuned is None:
    return {}
  trials = summary.trials
  tried = trials[trials["loss"].notna() | trials["diverged"]]
  x = dict(zip(summary.cells["cell"], summary.cells["x"]))
  curves = tried["cell"].map(
    lambda cell: f"{summary.x_macro} = {x[cell]}" if summary.x_macro else cell
  )
  tried = tried.assign(value=tried["tuned_value"], curve=curves)
  labels = {
    "value": plots.axis_label(status.tuned),
    "loss": plots.axis_label(status.loss),
  }
  plotters = {}
  for name in summary.series[:_MAX_PANELS]:
    rows = tried[tried["series"] == name]
    if rows["loss"].notna().any():
      title = f"Search for {status.tuned}"
      if len(summary.series) > 1:
        title += f": {name}"
      plotters[title] = lambda rows=rows: plots.plot_tuning(
        rows, curves=list(rows["curve"].unique()), labels=labels
      )
  return plotters


def _tiles(status, summary) -> list[tuple[str, str]]:
  """Returns (number, caption) of the numbers at the top of the page."""
  counts, trials = summary.counts(), summary.trials
  known = "known trials done" if status.tuned else "points done"
  tiles = [(f"{counts['done']} of {sum(counts.values())}", known)]
  if status.tuned:
    decided = int(
      (~summary.cells["open"] & (summary.cells["trials"] > 0)).sum()
    )
    tiles.append((f"{decided} of {len(summary.cells)}", "grid points decided"))
  tiles.append((_duration(trials["seconds"].sum()), "total run time"))
  if spent := trials.loc[trials["state"] == "done", "compute"].sum():
    tiles.append((f"{spent:.3g}", "training FLOPs done"))
  if len(summary.best):
    best = summary.best.loc[summary.best["loss"].idxmin()]
    tiles.append(
      (f"{best['loss']:.4f}", f"lowest {status.loss}, {best['cell']}")
    )
  return tiles


def _matrix(summary: Summary) -> dict:
  """Returns the best loss by series and x value, shaded by rank."""
  titles = [
    f"{x:g}" if isinstance(x, float) else str(x) for x in summary.cells["x"]
  ]
  columns = list(dict.fromkeys(titles))
  ranks = summary.cells["loss"].rank(ascending=False, pct=True)
  shades = matplotlib.colormaps["YlGn"]
  rows = {name: dict.fromkeys(columns) for name in summary.series}
  cells = summary.cells.to_dict("records")
  for cell, title, rank in zip(cells, titles, ranks):
    if not math.isnan(rank):
      cell["shade"] = matplotlib.colors.to_hex(shades(0.05 + 0.45 * rank))
    rows[cell["series"]][title] = cell
  return {"columns": columns, "rows": rows}


def _trials_table(status, summary) -> dict:
  """Returns columns and rows of the table of trials.

  Without the plan's columns and those that are the same for all trials.
  """
  results = status.results
  macros = {macro for bindings in status.grid.values() for macro in bindings}
  hidden = {"point", "cell", "state", "reason", "seconds", status.loss}
  if status.plan is not None:
    hidden |= set(status.plan)
  hidden |= {n for n in results if n not in hidden and _is_constant(results[n])}
  names = [name for name in results if name in macros or name not in hidden]
  best = set(summary.best["point"]) if status.tuned else set()
  rows = [
    {
      "point": row["point"],
      "state": row["state"],
      "best": row["point"] in best,
      "loss": row.get(status.loss),
      "values": [row[name] for name in names],
      "seconds": row.get("seconds"),
    }
    for row in results.to_dict("records")
  ]
  return {"columns": _columns(results[names]), "rows": rows}


def _is_constant(column: pd.Series) -> bool:
  return len(column) > 1 and column.map(repr)[column.notna()].nunique() < 2


def _plan_table(plan: pd.DataFrame | None) -> dict | None:
  """Returns columns, rows and column sums of the plan."""
  if plan is None:
    return None
  totals = [plan[n].sum() if n in _SUMMED else None for n in plan]
  return {
    "columns": _columns(plan),
    "rows": plan.to_dict("split")["data"],
    "totals": ["total", *totals[1:]],
  }


def _columns(table: pd.DataFrame) -> list[tuple[str, bool]]:
  """Returns (title, whether it holds numbers) of each column."""
  return [
    (_TITLES.get(name, name), pd.api.types.is_numeric_dtype(table[name]))
    for name in table
  ]


def _environment() -> jinja2.Environment:
  directory = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(directory),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(value=_format, duration=_duration)
  environment.tests["number"] = is_number
  return environment


def _format(value) -> str:
  """Returns a table's value as text: numbers with four significant digits."""
  if value is None or value != value:
    return ""
  if not is_number(value):
    return str(value)
  if float(value).is_integer() and abs(value) < 1e9:
    return f"{int(value):,}"
  return f"{value:,.4g}"


def _duration(seconds: float | None) -> str:
  """Returns a time as 3 d 4 h, 5 h 12 min, 7 min 30 s or 12 s."""
  if seconds is None or seconds != seconds:
    return ""
  whole = round(seconds)
  for size, unit, part, smaller in (
    (86400, "d", 3600, "h"),
    (3600, "h", 60, "min"),
    (60, "min", 1, "s"),
  ):
    if whole >= size:
      return f"{whole // size} {unit} {whole % size // part} {smaller}"
  return f"{whole} s"
