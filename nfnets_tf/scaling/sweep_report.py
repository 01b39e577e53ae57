"""The HTML report of a sweep: states, figures, tables, configuration."""

from __future__ import annotations

import functools
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

from nfnets_tf.fileio import write_atomically
from nfnets_tf.ranges import SEED, accepts, integer, optional
from nfnets_tf.scaling import plots
from nfnets_tf.scaling.study import Fits, RunColumns, fit_study
from nfnets_tf.scaling.sweep_tables import (
  Summary,
  SweepStatus,
  is_number,
  summarize,
)
from nfnets_tf.train.run_log import read_records

LOGGER = logging.getLogger("nfnets_tf")

_COLUMNS = RunColumns("compute", "loss", "model", "size", "epochs", "rate")
_MAX_PANELS = 12  # figures of a search, one per model
_TITLES = {
  "macs": "MACs",
  "seconds": "run time",
  "flops": "FLOPs",
  "tpu_v4_core_hours": "TPU-v4 core-hours",
  "memory_bytes": "memory (bytes)",
  "memory_bytes_per_image": "memory per image (bytes)",
}
_SUMMED = ("images", "steps", "flops", "tpu_v4_core_hours", "cost")


@accepts(resamples=integer(1), seed=SEED, refresh_seconds=optional(integer(1)))
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
    self.resamples, self.seed = resamples, seed
    self.refresh_seconds = refresh_seconds
    self._fits: tuple[pd.DataFrame, Fits] | None = None
    self._reported: set[str] = set()  # warnings of the fits
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
    counts, trials = summary.counts(), summary.trials
    open_trials = counts["running"] + counts["pending"]
    fits = self._fit(summary)
    failed = trials[trials["state"] == "failed"]
    return (
      _environment()
      .get_template("sweep_report.html.j2")
      .render(
        status=status,
        summary=summary,
        counts=counts,
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        refresh_seconds=self.refresh_seconds if open_trials else None,
        tiles=_tiles(status, summary, counts),
        failures=failed[~failed["diverged"]].to_dict("records"),
        diverged=failed[failed["diverged"]].to_dict("records"),
        matrix=_matrix(summary),
        figures=self._figures(status, summary, fits),
        laws=fits.describe() if len(fits.points) else [],
        doubts=fits.warnings(),
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
        warn=False,
      )
      self._fits = runs, fits
      for sentence in fits.warnings():
        if sentence not in self._reported:  # they come with every trial
          self._reported.add(sentence)
          LOGGER.warning("%s", sentence)
    return self._fits[1]

  def _figures(self, status, summary, fits) -> list[dict]:
    """Returns title, svg and width of every figure that can be drawn."""
    labels = {
      "compute": "flops",
      "size": "macs",
      "epochs": "EPOCHS",
      "rate": status.tuned,
      "loss": status.loss,
      "step": "step",
    }
    plotters: dict[str, Callable[[], Figure | None]] = {
      "Best loss of each grid point": lambda: _plot_losses(
        summary, fits, labels
      ),
      "Learning curves": lambda: self._plot_learning_curves(
        status, summary, labels
      ),
    }
    if status.tuned:
      plotters[f"Best {status.tuned}"] = lambda: _plot_rates(summary, labels)
    if (fits.allocation["state"] == "interior").any():
      plotters["Best size and epochs"] = lambda: plots.plot_allocation(
        fits, labels=labels
      )
    if status.tuned:
      plotters.update(_search_plotters(summary, labels))
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

  def _plot_learning_curves(self, status, summary, labels) -> Figure | None:
    """Plots the best trial of every grid point, and those that are running."""
    trials = summary.trials
    is_best = trials["point"].isin(summary.best["point"])
    shown = trials[is_best | (trials["state"] == "running")]
    runs = [
      (trial, self._read_metrics(status, trial.point, trial.state))
      for trial in shown.itertuples()
    ]
    loss = status.loss
    if all(sum(loss in r for r in records) < 2 for _, records in runs):
      loss = "loss"  # of training; held-out losses are too few for a curve
      labels = {**labels, "loss": "training loss (nats)"}
    rows = [
      (trial.point, trial.model, record["step"], record[loss])
      for trial, records in runs
      for record in records
      if record.get(loss) is not None and record["step"] > 0
    ]
    if not rows:
      return None
    curves = pd.DataFrame(rows, columns=["run", "model", "step", "loss"])
    return plots.plot_learning_curves(curves, labels=labels)

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


def _plot_losses(summary, fits, labels) -> Figure | None:
  points, x = summary.best, summary.best["x"]
  by_model = summary.points.groupby("model")["compute"].nunique()
  by_compute = (by_model > 1).any()
  if not by_compute:
    is_numeric = summary.points["x"].map(is_number).all()
    points = points.assign(
      compute=x.astype(float) if is_numeric else x.map(str)
    )
    labels = {**labels, "compute": summary.x_macro or ""}
  points = points.dropna(subset=["compute"])
  if points.empty:
    return None
  return plots.plot_losses(
    points,
    labels=labels,
    power=fits.power if by_compute else None,
    offset=fits.offset if by_compute else None,
    outliers=fits.outliers if by_compute else None,
  )


def _plot_rates(summary, labels) -> Figure | None:
  rates = summary.best.dropna(subset=["epochs"])
  if rates["epochs"].nunique() < 2:
    return None
  return plots.plot_rates(rates, labels=labels)


def _search_plotters(summary, labels) -> dict[str, Callable[[], Figure]]:
  """Returns {title: plotter} of the search at each model's grid points."""
  trials = summary.trials
  x = summary.points.set_index("grid_point")["x"]
  curves = trials["grid_point"].map(
    lambda name: f"{summary.x_macro} = {x[name]}" if summary.x_macro else name
  )
  tried = trials.assign(curve=curves)
  tried = tried[tried["loss"].notna() | tried["diverged"]]
  models = list(tried.dropna(subset=["loss"])["model"].unique())
  return {
    f"Search for {labels['rate']}: {model}": functools.partial(
      plots.plot_tuning, tried[tried["model"] == model], labels=labels
    )
    for model in models[:_MAX_PANELS]
  }


def _tiles(status, summary, counts) -> list[tuple[str, str]]:
  """Returns (number, caption) of the numbers at the top of the page."""
  best, trials = summary.best, summary.trials
  known = "known trials done" if status.tuned else "points done"
  tiles = [(f"{counts['done']} of {len(trials)}", known)]
  if status.tuned:
    decided = (~best["open"]).sum()
    tiles.append((f"{decided} of {len(status.grid)}", "grid points decided"))
  tiles.append((_duration(trials["seconds"].sum()), "total run time"))
  if spent := trials.loc[trials["state"] == "done", "compute"].sum():
    tiles.append((f"{spent:.3g}", "training FLOPs done"))
  if len(best):
    lowest = best.loc[best["loss"].idxmin()]
    caption = f"lowest {status.loss}, {lowest['grid_point']}"
    tiles.append((f"{lowest['loss']:.4f}", caption))
  return tiles


def _matrix(summary: Summary) -> dict:
  """Returns the best loss by model and x value, shaded by rank."""
  points = summary.points
  titles = [f"{x:g}" if isinstance(x, float) else str(x) for x in points["x"]]
  columns = list(dict.fromkeys(titles))
  ranks = points["loss"].rank(ascending=False, pct=True)
  shades = matplotlib.colormaps["YlGn"]
  rows = {model: dict.fromkeys(columns) for model in points["model"]}
  for point, title, rank in zip(points.to_dict("records"), titles, ranks):
    if not math.isnan(rank):
      point["shade"] = matplotlib.colors.to_hex(shades(0.05 + 0.45 * rank))
    rows[point["model"]][title] = point
  return {"columns": columns, "rows": rows}


def _trials_table(status, summary) -> pd.DataFrame:
  """Returns the results without the plan's columns and constant ones."""
  results = status.results
  shown = {"point", "state", status.loss, "seconds"}
  shown.update(*status.grid.values())  # the macros
  hidden = {"grid_point", "reason", "diverged"}
  hidden.update(() if status.plan is None else status.plan)
  hidden.update(n for n in results if _is_constant(results[n]))
  table = results[[n for n in results if n in shown or n not in hidden]]
  if status.tuned:
    best = table["point"].isin(summary.best["point"])
    table = table.assign(best=best.map({True: "best", False: ""}))
  table = table.assign(seconds=table["seconds"].map(_duration))
  return table.rename(columns=_TITLES)


def _is_constant(column: pd.Series) -> bool:
  return len(column) > 1 and column.map(repr)[column.notna()].nunique() < 2


def _plan_table(plan: pd.DataFrame | None) -> pd.DataFrame | None:
  """Returns the plan with a row of sums."""
  if plan is None:
    return None
  totals = plan[[name for name in _SUMMED if name in plan]].sum()
  totals = totals.to_frame().T.assign(point="total")
  return pd.concat([plan, totals]).rename(columns=_TITLES)


def _environment() -> jinja2.Environment:
  directory = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(directory),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["value"] = _format
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
