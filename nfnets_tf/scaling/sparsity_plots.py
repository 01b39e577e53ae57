"""The figures of a study of sparsity."""

from __future__ import annotations

import os

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from nfnets_tf.scaling import plots
from nfnets_tf.scaling.run_tables import SparsityColumns
from nfnets_tf.scaling.sparsity_study import SparsityFits

_MAX_PANELS = 4
_WIDE = 100.0  # range of sizes of which a narrow panel labels powers of 10
_WIDER = 10.0  # range of the contours beyond the points, on both sides
_NONZERO = "nonzero parameters"
_ENGINEERING = ticker.EngFormatter(sep="")
_LINE = {"color": "black", "linewidth": 1.1}


def write_sparsity_figures(
  fits: SparsityFits, columns: SparsityColumns, directory: str
) -> list[str]:
  """Writes the figures of a study and returns their paths.

  Args:
    fits: of the study.
    columns: names of the table's columns, which label the axes.
    directory: where loss.png, optimal_sparsity.png and fit.png are written; it
      must exist.
  """
  drawn = {
    "loss.png": plot_sparse_losses(fits, columns),
    "optimal_sparsity.png": plot_optimal_sparsity(fits, columns),
    "fit.png": plot_fit(fits, columns),
  }
  paths = [os.path.join(directory, name) for name in drawn]
  for figure, path in zip(drawn.values(), paths):
    plots.save_png(figure, path)
  return paths


def sparsity_styles(fits: SparsityFits) -> dict[tuple[str, float], dict]:
  """Returns {(structure, level): label, color and marker} of a study."""
  found = {
    (row.structure if row.level else "", row.level)
    for row in fits.points.itertuples()
  }
  # The main structure needs no name.
  keys = sorted(found, key=lambda x: (x[0] not in ("", fits.main), x[1], x[0]))
  styles = plots.model_styles(map(str, keys)).values()
  result = {}
  for (structure, sparsity), style in zip(keys, styles):
    label = f"{sparsity:.4g}" if sparsity else "dense"
    if structure not in ("", fits.main):
      label += f" {structure}"
    result[structure, sparsity] = {"label": label, **style}
  return result


def _rows(points, key):
  structure, level = key
  rows = points[points["level"] == level]
  return rows if level == 0 else rows[rows["structure"] == structure]


def plot_sparse_losses(fits: SparsityFits, columns: SparsityColumns) -> Figure:
  """Plots loss against nonzero parameters, a curve for each sparsity.

  Args:
    fits: of the study; of many amounts of data, four have a panel.
    columns: names of the table's columns, which label the axes.
  """
  amounts = np.unique(fits.points["data"])
  places = np.linspace(0, len(amounts) - 1, min(_MAX_PANELS, len(amounts)))
  shown = amounts[np.round(places).astype(int)]
  figure, every = plots.new_figure(
    3.3 * len(shown) + 1.0, 4.2, columns=len(shown)
  )
  inside = fits.points[fits.points["data"].isin(shown)]
  styles = sparsity_styles(fits)
  for axes, amount in zip(every, shown):
    points = inside[inside["data"] == amount]
    for key, style in styles.items():
      rows = _rows(points, key).sort_values("nonzero")
      axes.plot("nonzero", "loss", data=rows, linestyle="none", **style)
      law = fits.laws.get(key[0], fits.law)
      if len(rows):
        grid = np.geomspace(*points["nonzero"].agg(["min", "max"]), 100)
        curve = law.predict(key[1], grid, amount)
        axes.plot(grid, curve, color=style["color"], linewidth=1.2)
    unit = plots.axis_label(columns.data)
    axes.set_title(f"{unit}: {_ENGINEERING(amount)}", fontsize=11)
    axes.set_xlabel(_NONZERO)
    ends = inside["nonzero"].agg(["min", "max"])
    plots.set_log_axis(axes, "x", ends)
    if ends["max"] > _WIDE * ends["min"]:
      axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0,)))
    plots.set_log_axis(axes, "y", inside["loss"].agg(["min", "max"]))
  every[0].set_ylabel(plots.axis_label(columns.loss))
  every[-1].legend(title="sparsity")
  return figure


def plot_optimal_sparsity(
  fits: SparsityFits, columns: SparsityColumns
) -> Figure:
  """Plots the contours of optimal sparsity over compute and size.

  Args:
    fits: of the study. Its points are gray dots; the dashed line has the
      compute-optimal dense networks.
    columns: names of the table's columns, which label the axes.
  """
  figure, (axes,) = plots.new_figure(7.0, 5.0)
  computes = fits.cost.compute(
    *fits.points[["sparsity", "nonzero", "data"]].to_numpy().T
  )
  axes.plot(computes, fits.points["nonzero"], ".", color="0.6", label="runs")
  sizes = fits.points["nonzero"].agg(["min", "max"]).to_numpy()
  sizes = np.geomspace(sizes[0] / _WIDER, sizes[1] * _WIDER, 200)
  levels = np.unique([0.0, *fits.points["level"]])
  shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(levels)))
  for level, color in zip(levels, shades):
    contour = fits.law.optimal_compute(level, sizes, fits.cost)
    label = f"{level:.4g} is optimal" if level else "dense (pruning pays below)"
    axes.plot(contour, sizes, color=color, label=label)
  dense = fits.law.dense_compute(sizes, fits.cost)
  axes.plot(dense, sizes, "--", label="best dense size", **_LINE)
  axes.set(xlabel="training FLOPs", ylabel=_NONZERO)
  plots.set_log_axis(
    axes, "x", [computes.min() / _WIDER, computes.max() * _WIDER]
  )
  plots.set_log_axis(axes, "y", sizes)
  axes.legend(title="sparsity")
  return figure


def plot_fit(fits: SparsityFits, columns: SparsityColumns) -> Figure:
  """Plots measured against fitted losses; on the diagonal they agree.

  Args:
    fits: of the study; its outliers are crosses, and predictions of the points
      held back are stars with their intervals.
    columns: names of the table's columns, which label the axes.
  """
  figure, (axes,) = plots.new_figure(5.6, 5.2)
  shown = [*fits.points["loss"]]
  for key, style in sparsity_styles(fits).items():
    rows = _rows(fits.points, key)
    law = fits.laws.get(key[0], fits.law)
    fitted = law.predict(rows["sparsity"], rows["nonzero"], rows["data"])
    axes.plot(fitted, rows["loss"], linestyle="none", markersize=4.5, **style)
    shown += [*fitted]
  held = fits.held_back
  if held and held.law:
    look = {"markersize": 13, "color": "C3", "markeredgecolor": "black"}
    rows = held.points
    axes.plot("predicted", "loss", "*", data=rows, label="held back", **look)
    axes.hlines(rows["loss"], rows["low"], rows["high"], color="C3")
    ends = rows[["predicted", "low", "high", "loss"]].to_numpy().ravel()
    shown += [*ends[np.isfinite(ends)]]
  if len(fits.outliers):
    look = {"color": "C3", "markersize": 10, "label": "outlier"}
    axes.plot("predicted", "loss", "X", data=fits.outliers, **look)
    shown += [*fits.outliers["predicted"], *fits.outliers["loss"]]
  ends = [min(shown), max(shown)]
  axes.plot(ends, ends, "--", **_LINE)
  loss = plots.axis_label(columns.loss)
  axes.set(xlabel=f"{loss}, by the law", ylabel=f"{loss}, measured")
  for which in "xy":
    plots.set_log_axis(axes, which, ends)
  axes.legend(title=f"sparsity (rms {fits.law.rms:.2%})")
  return figure
