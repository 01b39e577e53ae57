"""The figures of a sweep's report, as far as its axes and points permit.

A figure that cannot be drawn yet says in words why.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from nfnets_tf.scaling.allocation import Exponents
from nfnets_tf.scaling.drawing import label, looks
from nfnets_tf.scaling.overview import Overview
from nfnets_tf.scaling.page_curves import (
  GLYPHS,
  NOTHING,
  Picture,
  draw_loss,
  draw_optima,
)
from nfnets_tf.scaling.page_laws import Laws
from nfnets_tf.scaling.page_svg import (
  INK,
  Drawing,
  colour,
  scale,
)

_MOST_PANELS = 12


def draw_all(view: Overview, found: Laws) -> list[Picture]:
  """Draws every figure of the page, in its order."""
  optima = draw_optima(view)
  return [
    draw_loss(view, found.power, found.offset),
    *([optima] if optima else []),
    *draw_allocation(_or_nothing(found.allocation), "macs", found.exponents),
    *draw_tuning(view),
  ]


def _or_nothing(allocation: pd.DataFrame | None) -> pd.DataFrame:
  if allocation is None:
    return pd.DataFrame(columns=["state", "models"])
  return allocation


def draw_tuning(view: Overview) -> list[Picture]:
  """Draws loss against what is tuned: a panel a curve, a line a cell."""
  if view.tuned is None:
    return []
  title = f"{label(view.loss)} against {label(view.tuned)}"
  tried = view.trials[view.trials["loss"].notna() | view.trials["diverged"]]
  curves = [c for c in view.curves if (tried["curve"] == c).any()]
  if not curves:
    return [Picture(title, None, note=NOTHING)]
  pictures = []
  for curve in curves[:_MOST_PANELS]:
    name = title if len(view.curves) == 1 else f"{curve}: {title}"
    pictures.append(_panel(view, tried[tried["curve"] == curve], name))
  if len(curves) > _MOST_PANELS:
    rest = f"{len(curves) - _MOST_PANELS} more are in the table of all points."
    pictures.append(Picture(title, None, note=rest))
  return pictures


def draw_allocation(
  allocation: pd.DataFrame, size: str, exponents: Exponents | None
) -> list[Picture]:
  """Draws the best size and the best number of epochs against compute.

  Args:
    allocation: of `allocation.optimal_allocation`.
    size: name of what sizes are measured by.
    exponents: of a line through them, or None.
  """
  inside = allocation[allocation["state"] == "interior"]
  lines = {"size": None, "epochs": None}
  if exponents:
    e = exponents
    lines = {"size": (e.k, e.p), "epochs": (e.m, e.q)}
  pictures = []
  for column, name in (("size", size), ("epochs", "EPOCHS")):
    title = f"Best {label(name)} at a compute"
    if not len(inside):
      pictures.append(Picture(title, None, note=_why_none(allocation)))
      continue
    drawing = Drawing(label("flops"), label(name))
    for row in inside.itertuples():
      told = f"{getattr(row, column):.4g} at {row.compute:.3g} FLOPs"
      drawing.dot(
        row.compute,
        getattr(row, column),
        told,
        colour=INK,
        hollow=False,
        marker="o",
      )
    if lines[column]:
      factor, power = lines[column]
      ends = np.array([inside["compute"].min(), inside["compute"].max()])
      told = f"{factor:.3g} C^{power:.3g}"
      drawing.line(ends, factor * ends**power, told, color=INK, linestyle="--")
    scale(drawing.axes, "x", inside["compute"])
    scale(drawing.axes, "y", inside[column])
    pictures.append(Picture(title, drawing))
  return pictures


def _why_none(allocation) -> str:
  if not len(allocation):
    return (
      "Not enough points: there is no model yet with a loss at two computes."
    )
  most = allocation["models"].max()
  if most < 3:
    reached = {1: "one model", 2: "two models"}.get(most, "no model")
    return (
      "Not enough points: an optimum between sizes takes three models that"
      f" reach the same compute, and no compute is reached by more than"
      f" {reached}."
    )
  return (
    "No optimum lies between the sizes: wherever three models or more can be"
    " compared, the smallest or the largest is best."
  )


def _panel(view, tried, title) -> Picture:
  tried_cells = set(tried["cell"])  # in the order of the grid
  cells = [cell for cell in view.cells["cell"] if cell in tried_cells]
  drawing = Drawing(label(view.tuned), label(view.loss), height=3.3)
  finite = tried["loss"].dropna()
  legend = []
  markers = [look["marker"] for look in looks(cells).values()]
  for number, (cell, marker) in enumerate(zip(cells, markers)):
    own = tried[tried["cell"] == cell].sort_values("value")
    shade = colour(number, len(cells))
    _draw_trials(drawing, own, shade, marker, finite)
    along = own["along"].iloc[0]
    words = f"{view.running} = {along}" if view.running else cell
    legend.append((GLYPHS[marker], shade, words))
  scale(drawing.axes, "x", tried["value"])
  scale(drawing.axes, "y", finite)
  note = "× diverged" if tried["diverged"].any() else ""
  return Picture(title, drawing, tuple(legend), note)


def _draw_trials(drawing, own, shade, marker, finite) -> None:
  done = own.dropna(subset=["loss"])
  told = str(own["cell"].iloc[0])
  drawing.line(done["value"], done["loss"], told, color=shade)
  for row in own.itertuples():
    if not math.isnan(row.loss):
      best = row.loss == done["loss"].min()
      drawing.dot(
        row.value,
        row.loss,
        f"{row.point}: {row.loss:.4f}",
        colour=shade,
        hollow=not best,
        marker=marker,
      )
    elif len(finite):
      text = f"{row.point}: diverged"
      at, x = finite.max(), "x"
      drawing.dot(row.value, at, text, colour=shade, hollow=False, marker=x)
