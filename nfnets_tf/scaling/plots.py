"""The figures of a scaling study, as PNG files and as SVG inside a page."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure

from nfnets_tf import figures
from nfnets_tf.scaling.power_laws import Extrapolation, Law
from nfnets_tf.scaling.study import Fits, RunColumns

_STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 11,
  "grid.alpha": 0.25,
  "legend.fontsize": 9.5,
  "legend.framealpha": 0.9,
  "svg.fonttype": "none",  # text stays text, in the font of the page
  "svg.hashsalt": "nfnets_tf",  # the same data gives the same bytes
}
_SIZE = (7.0, 5.0)  # inches, of figures with one pair of axes
_MARKERS = "osD^vPXph<>"
_STAR_COLORS = ("C3", "C1", "C6", "C9")
_LAW_STYLE = {"color": "black", "linewidth": 1.3}
_OUTLIERS = {"label": "outlier", "color": "C3", "marker": "X", "s": 130}
_MAX_VALUE_TICKS = 10  # up to which every value gets a tick
_EDGE_MARKERS = {"lower": "v", "upper": "^", "only": "d"}

LABELS = {
  "flops": "training FLOPs",
  "tpu_v4_core_hours": "TPU-v4 core-hours",
  "heldout_loss": "held-out loss (nats)",
  "loss": "loss (nats)",
  "macs": "MACs of one image's forward pass",
  "parameters": "parameters",
  "EPOCHS": "epochs",
  "PEAK_LR": "peak learning rate",
}


def axis_label(column: str) -> str:
  """Returns the label of a column, with its unit where it is known."""
  return _plain(LABELS.get(column, column))


@matplotlib.rc_context(_STYLE)
def new_figure(
  width: float, height: float, *, columns: int = 1
) -> tuple[Figure, Sequence]:
  """Returns a figure of a size in inches, and its axes [columns], in a row."""
  figure = Figure(figsize=(width, height), layout="constrained")
  return figure, figure.subplots(1, columns, squeeze=False)[0]


def save_png(figure: Figure, path: str) -> None:
  """Writes a figure at 120 dpi, to a local path or gs://."""
  figures.save_png(figure, path, dpi=120, formulas=True)


@matplotlib.rc_context(_STYLE)
def to_svg(figure: Figure, prefix: str) -> str:
  """Returns a figure as an <svg> element as wide as its place in the page.

  Args:
    figure: of this module.
    prefix: of all ids in it, unique in the page.
  """
  figures.prepare_text(figure, formulas=True)
  buffer, none = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format"))
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing")
    figure.savefig(buffer, format="svg", transparent=True, metadata=none)
  svg = buffer.getvalue()
  svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
  # Matplotlib's own <style> would apply to the whole page.
  svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
  box = re.search(r'viewBox="[^"]*"', svg)[0]
  body = svg[svg.index(">", svg.index("<svg")) + 1 :]
  return f'<svg {box} role="img">{body}'


def model_styles(models: Iterable[str]) -> dict[str, dict]:
  """Returns {model: color and marker}, from dark to light in this order."""
  models = list(models)
  shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, len(models)))
  return {
    model: {"color": tuple(shade), "marker": _MARKERS[i % len(_MARKERS)]}
    for i, (model, shade) in enumerate(zip(models, shades))
  }


def set_log_axis(axes, which: str, values: Sequence[float]) -> None:
  """Makes an axis logarithmic, with a margin and few, plainly written ticks.

  Args:
    axes: of matplotlib.
    which: "x" or "y".
    values: to show; those that are not positive and finite are ignored, and
      without any other the axis stays linear.
  """
  values = np.asarray(values, float)
  values = values[np.isfinite(values) & (values > 0)]
  if not len(values):
    return
  getattr(axes, f"set_{which}scale")("log")
  low, high = values.min(), values.max()
  margin = max((high / low) ** 0.04, 1.01)
  getattr(axes, f"set_{which}lim")(low / margin, high * margin)
  distinct = np.unique(values)
  axis = getattr(axes, f"{which}axis")
  if len(distinct) == 1 or len(values) > len(distinct) <= _MAX_VALUE_TICKS:
    # Rounded for short labels; a shift of 0.1 % is invisible.
    locator = ticker.FixedLocator([float(f"{x:.3g}") for x in distinct])
  elif high / low < 4.0:
    locator = ticker.MaxNLocator(8, steps=[1, 2, 2.5, 5, 10])
  else:
    subs = (1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0)
    locator = ticker.LogLocator(subs=subs)
  axis.set_major_locator(locator)
  axis.set_minor_locator(ticker.NullLocator())
  if high >= 1e15:  # prefixes that few can read
    formatter = ticker.LogFormatterSciNotation(minor_thresholds=(99, 99))
  elif low >= 1.0:
    formatter = ticker.EngFormatter(sep="")
  else:
    formatter = ticker.StrMethodFormatter("{x:g}")
  axis.set_major_formatter(formatter)


@matplotlib.rc_context(_STYLE)
def plot_losses(
  points: pd.DataFrame,
  *,
  labels: Mapping[str, str],
  power: Law | None = None,
  offset: Law | None = None,
  extrapolation: Extrapolation | None = None,
  references: pd.DataFrame | None = None,
  outliers: pd.DataFrame | None = None,
) -> Figure:
  """Plots loss or error against compute, a curve per model: figures 1 and 2.

  Args:
    points: columns model, compute and loss; the models are in the legend in
      the order of their first rows. A compute that is text makes the axis one
      of categories. Where a column `open` is true the marker is hollow.
    labels: {"compute": column or label of the x axis, "loss": of the y axis}.
    power: L = a C^-b, a dashed line with its 95 % band.
    offset: L = a C^-b + c, a dotted line.
    extrapolation: of the law below a threshold, hollow circles.
    references: columns model, compute and loss of other systems, a star each.
    outliers: columns compute and loss of points that contradict all others, a
      cross each.
  """
  figure, (axes,) = new_figure(*_SIZE)
  for model, style in model_styles(points["model"].unique()).items():
    _plot_model(axes, points[points["model"] == model], _plain(model), style)
  shown = points[["compute", "loss"]]
  if power or offset:
    _plot_laws(axes, points["compute"], power, offset)
  if references is not None:
    _plot_references(axes, references)
    shown = pd.concat([shown, references[["compute", "loss"]]])
  if outliers is not None and len(outliers):
    axes.scatter("compute", "loss", data=outliers, **_OUTLIERS)
    shown = pd.concat([shown, outliers[["compute", "loss"]]])
  losses = [*shown["loss"]]
  if extrapolation and extrapolation.power and extrapolation.compute:
    losses += _plot_extrapolation(axes, extrapolation)
  _set_labels(axes, labels, "compute", "loss")
  if pd.api.types.is_numeric_dtype(shown["compute"]):
    set_log_axis(axes, "x", shown["compute"])
  set_log_axis(axes, "y", losses)
  axes.legend()
  return figure


@matplotlib.rc_context(_STYLE)
def plot_rates(rates: pd.DataFrame, *, labels: Mapping[str, str]) -> Figure:
  """Plots the best learning rate against epochs, a line per model: figure 3.

  Args:
    rates: columns model, epochs and rate; where a column `edge` says that a
      better rate may exist beyond the tried ones, a white arrow points there.
    labels: {"epochs": column or label of the x axis, "rate": of the y axis}.
  """
  figure, (axes,) = new_figure(*_SIZE)
  styles = model_styles(rates["model"].unique())
  # Lines that coincide stay visible: the first is the widest.
  widths = np.linspace(5.0, 1.5, len(styles))
  for (model, style), width in zip(styles.items(), widths):
    rows = rates[rates["model"] == model].sort_values("epochs")
    size = {"linewidth": width, "markersize": 3.0 + 2.0 * width}
    axes.plot(
      rows["epochs"], rows["rate"], label=_plain(model), **size, **style
    )
    if "edge" in rows:
      for edge, marker in _EDGE_MARKERS.items():
        at = rows[rows["edge"] == edge]
        look = {"marker": marker, "color": "white", "edgecolor": "black"}
        axes.scatter(at["epochs"], at["rate"], s=30, zorder=5, **look)
  _set_labels(axes, labels, "epochs", "rate")
  set_log_axis(axes, "x", rates["epochs"])
  set_log_axis(axes, "y", rates["rate"])
  axes.legend()
  return figure


@matplotlib.rc_context(_STYLE)
def plot_allocation(fits: Fits, *, labels: Mapping[str, str]) -> Figure:
  """Plots the best size and the best epochs against compute.

  Points of the frontier are hollow, interior optima are dots with the line
  fitted to them.

  Args:
    fits: of the study.
    labels: {"compute": column or label of the x axes, "size" and "epochs": of
      the y axes}.
  """
  models = fits.points.sort_values("size", kind="stable")["model"].unique()
  interior = fits.allocation[fits.allocation["state"] == "interior"]
  powers = {}
  if e := fits.exponents:
    powers = {"size": (e.k, e.p), "epochs": (e.m, e.q)}
  grid = np.geomspace(*fits.points["compute"].agg(["min", "max"]), 100)
  figure, both = new_figure(10.0, 4.2, columns=2)
  for axes, what in zip(both, ("size", "epochs")):
    for model, style in model_styles(models).items():
      rows = fits.frontier[fits.frontier["model"] == model]
      look = {"linestyle": "none", "markerfacecolor": "none", **style}
      axes.plot(rows["compute"], rows[what], label=_plain(model), **look)
    axes.plot(interior["compute"], interior[what], ".", color="black")
    if what in powers:
      factor, power = powers[what]
      text = rf"best {what} $\sim C^{{{power:.2f}}}$"
      axes.plot(grid, factor * grid**power, "--", color="black", label=text)
    _set_labels(axes, labels, "compute", what)
    axes.set_ylabel(f"best {axes.get_ylabel()}")
    set_log_axis(axes, "x", fits.points["compute"])
    set_log_axis(axes, "y", fits.points[what])
    axes.legend(fontsize="x-small")
  return figure


@matplotlib.rc_context(_STYLE)
def plot_tuning(trials: pd.DataFrame, *, labels: Mapping[str, str]) -> Figure:
  """Plots loss against a tuned value, a line per grid point.

  Args:
    trials: columns curve, rate and loss; a loss that is NaN is a trial that
      diverged, a cross at the top.
    labels: {"rate": column or label of the x axis, "loss": of the y axis}.
  """
  figure, (axes,) = new_figure(*_SIZE)
  finite = trials.dropna(subset=["loss"])
  for curve, style in model_styles(trials["curve"].unique()).items():
    rows = finite[finite["curve"] == curve].sort_values("rate")
    look = {"markerfacecolor": "none", **style}
    axes.plot(rows["rate"], rows["loss"], label=_plain(curve), **look)
    best = rows[rows["loss"] == rows["loss"].min()]
    axes.plot(best["rate"], best["loss"], linestyle="none", **style)
  diverged = trials.loc[trials["loss"].isna(), "rate"]
  if len(diverged) and len(finite):
    top = np.full(len(diverged), finite["loss"].max())
    axes.plot(diverged, top, "x", color="C3", label="diverged")
  _set_labels(axes, labels, "rate", "loss")
  set_log_axis(axes, "x", trials["rate"])
  set_log_axis(axes, "y", finite["loss"])
  axes.legend()
  return figure


@matplotlib.rc_context(_STYLE)
def plot_learning_curves(
  curves: pd.DataFrame, *, labels: Mapping[str, str]
) -> Figure:
  """Plots loss against the training step, a line per run, a color per model.

  Args:
    curves: columns run, model, step and loss.
    labels: {"step": column or label of the x axis, "loss": of the y axis}.
  """
  figure, (axes,) = new_figure(*_SIZE)
  for model, style in model_styles(curves["model"].unique()).items():
    color, label = style["color"], _plain(model)
    for _, rows in curves[curves["model"] == model].groupby("run", sort=False):
      axes.plot(
        rows["step"], rows["loss"], color=color, linewidth=1.2, label=label
      )
      axes.plot(*rows[["step", "loss"]].iloc[-1], ".", color=color)
      label = None
  _set_labels(axes, labels, "step", "loss")
  for which, column in (("x", "step"), ("y", "loss")):
    set_log_axis(axes, which, curves[column].agg(["min", "max"]))
  axes.legend()
  return figure


def write_study_figures(
  fits: Fits, columns: RunColumns, directory: str
) -> list[str]:
  """Writes the figures of a study and returns their paths.

  Args:
    fits: of the study.
    columns: names of the table's columns, which label the axes.
    directory: where loss.png, rates.png (if there are rates) and
      allocation.png are written; it must exist.
  """
  if fits.points.empty:
    return []
  labels = vars(columns)
  by_size = fits.points.sort_values("size", kind="stable")
  drawn = {
    "loss.png": plot_losses(
      by_size,
      labels=labels,
      power=fits.power,
      offset=fits.offset,
      extrapolation=fits.extrapolation,
      outliers=fits.outliers,
    )
  }
  if len(fits.rates):
    drawn["rates.png"] = plot_rates(fits.rates, labels=labels)
  drawn["allocation.png"] = plot_allocation(fits, labels=labels)
  paths = [os.path.join(directory, name) for name in drawn]
  for figure, path in zip(drawn.values(), paths):
    save_png(figure, path)
  return paths


def _set_labels(axes, labels, x: str, y: str) -> None:
  axes.set(xlabel=axis_label(labels[x]), ylabel=axis_label(labels[y]))


def _plain(text) -> str:
  """Returns a name that matplotlib draws as it is, and lists in legends."""
  text = figures.label(text).replace("$", r"\$")
  return f" {text}" if text.startswith("_") else text


def _plot_model(axes, rows, label, style) -> None:
  if pd.api.types.is_numeric_dtype(rows["compute"]):
    rows = rows.sort_values("compute")
  else:
    rows = rows.assign(compute=rows["compute"].map(_plain))
  axes.plot(rows["compute"], rows["loss"], label=label, **style)
  if "open" in rows and rows["open"].any():
    rows = rows[rows["open"].astype(bool)]
    look = {"linestyle": "none", "markerfacecolor": "white", **style}
    axes.plot(rows["compute"], rows["loss"], **look)


def _plot_references(axes, references) -> None:
  for number, row in enumerate(references.itertuples()):
    look = {"color": _STAR_COLORS[number % len(_STAR_COLORS)], "markersize": 15}
    axes.plot(
      row.compute,
      row.loss,
      "*",
      label=_plain(row.model),
      markeredgecolor="k",
      **look,
    )


def _plot_laws(axes, compute, power, offset) -> None:
  grid = np.geomspace(compute.min(), compute.max(), 200)
  if power:
    text = rf"${power.a:.3g}\,C^{{-{power.b:.3g}}}$"
    axes.plot(grid, power.predict(grid), "--", label=text, **_LAW_STYLE)
    if (band := power.band(grid)) is not None:
      axes.fill_between(grid, *band, color="black", alpha=0.10, linewidth=0)
  if offset:
    text = rf"${offset.a:.3g}\,C^{{-{offset.b:.3g}}} + {offset.c:.3g}$"
    axes.plot(grid, offset.predict(grid), ":", label=text, **_LAW_STYLE)


def _plot_extrapolation(axes, extrapolation: Extrapolation) -> list[float]:
  """Plots the predictions and returns them."""
  axes.axvline(extrapolation.threshold, color="0.5", lw=0.8, ls="-.")
  predictions = extrapolation.power.predict(extrapolation.compute)
  look = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": "C3"}
  label = "extrapolated from the left"
  axes.plot(extrapolation.compute, predictions, "o", label=label, **look)
  return predictions.tolist()
