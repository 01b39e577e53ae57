"""The figures of a sweep's report that have a curve for each model.

A figure that cannot be drawn yet says in words why.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from nfnets_tf.scaling.drawing import label, looks
from nfnets_tf.scaling.overview import Overview
from nfnets_tf.scaling.page_svg import (
  INK,
  Drawing,
  categories,
  colour,
  scale,
)
from nfnets_tf.scaling.power_laws import Law

_MOST_NAMES = 12  # that are written beside points
GLYPHS = dict(zip("osD^vPXph<>", "●■◆▲▼✚✖⬟⬢◀▶"))
NOTHING = "No point has finished yet."
_HOLLOW = "Hollow: trials are still to come."


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure and what is written around it.

  Attributes:
    title: above it.
    drawing: what is drawn, None if there is nothing to draw yet.
    legend: (glyph, colour, words) of what is in it.
    note: words below it; those in place of it, where there is none.
  """

  title: str
  drawing: Drawing | None
  legend: tuple[tuple[str, str, str], ...] = ()
  note: str = ""


def draw_loss(view: Overview, power: Law | None, offset: Law | None) -> Picture:
  """Draws the best loss of each cell, one curve a model."""
  title = f"{label(view.loss)} of each cell's best trial"
  if not len(view.best):
    return Picture(title, None, note=NOTHING)
  known = view.best.dropna(subset=[view.across])
  xlabel = view.running or "the only point"
  note = _HOLLOW if known["open"].any() else ""
  if view.across == "compute":
    xlabel = label("flops")
  elif view.cells["compute"].isna().all():
    note += " What a point costs is not known: there is no plan.csv."
  drawing = Drawing(xlabel, label(view.loss))
  places = _places(view, known)
  _draw_curves(drawing, view, known.assign(place=places), "loss")
  shown = known["loss"].tolist()
  legend = _legend(view, known)
  if view.across == "compute":
    legend += _draw_laws(drawing, known["compute"], power, offset)
  scale(drawing.axes, "y", shown)
  _scale_across(drawing, view, places)
  if len(view.curves) == 1 and len(known) <= _MOST_NAMES:
    _write_names(drawing, view, known.assign(place=places))
  return Picture(title, drawing, legend, note.strip())


def draw_optima(view: Overview) -> Picture | None:
  """Draws the best value of what is tuned; None if nothing is tuned."""
  if view.tuned is None:
    return None
  title = f"Best {label(view.tuned)}"
  if not len(view.best):
    return Picture(title, None, note=NOTHING)
  by_epochs = view.best["epochs"].nunique() > 1
  place = view.best["epochs"] if by_epochs else _places(view, view.best)
  known = view.best.assign(place=place).dropna(subset=["place"])
  xlabel = label("EPOCHS")
  if not by_epochs:
    xlabel = label("flops") if view.across == "compute" else view.running or ""
  drawing = Drawing(xlabel, label(view.tuned))
  _draw_curves(drawing, view, known, "value", nested=True)
  scale(drawing.axes, "y", known["value"])
  if by_epochs:
    scale(drawing.axes, "x", known["place"])
  else:
    _scale_across(drawing, view, known["place"])
  note = _HOLLOW if known["open"].any() else ""
  return Picture(title, drawing, _legend(view, known), note)


def _places(view, cells) -> pd.Series:
  """Returns where cells are on the horizontal axis."""
  values = cells[view.across]
  if _is_numeric(view):
    return values.astype(float)
  labels = _words(view)
  return values.map(lambda value: labels.index(str(value))).astype(float)


def _scale_across(drawing, view, places) -> None:
  if _is_numeric(view):
    scale(drawing.axes, "x", places)
  else:
    categories(drawing.axes, _words(view))


def _is_numeric(view) -> bool:
  kinds = view.cells[view.across].map(type)
  return bool(kinds.isin((int, float)).all())


def _words(view) -> list[str]:
  return list(dict.fromkeys(map(str, view.cells[view.across])))


def _legend(view, cells) -> tuple:
  if len(view.curves) == 1:
    return ()
  found = set(cells["curve"])
  return tuple(
    (GLYPHS[look["marker"]], colour(number, len(view.curves)), curve)
    for number, (curve, look) in enumerate(looks(view.curves).items())
    if curve in found
  )


def _draw_curves(drawing, view, cells, what, nested: bool = False) -> None:
  count = len(view.curves)
  # Lines that lie on each other stay visible: the first is the widest.
  widths = np.linspace(5.5, 1.5, count) if nested else np.full(count, 1.6)
  for number, (curve, look) in enumerate(looks(view.curves).items()):
    own = cells[cells["curve"] == curve].sort_values("place")
    if not len(own):
      continue
    shade, width = colour(number, count), widths[number]
    drawing.line(own["place"], own[what], curve, color=shade, linewidth=width)
    for row in own.itertuples():
      told = f"{row.point}: {view.loss} {row.loss:.4f}"
      if not math.isnan(row.compute):
        told += f", {row.compute:.3g} FLOPs"
      size = 4.0 + 1.5 * width
      drawing.dot(
        row.place,
        getattr(row, what),
        told,
        colour=shade,
        hollow=row.open,
        marker=look["marker"],
        markersize=size,
      )


def _draw_laws(drawing, compute, power, offset) -> tuple:
  legend, grid = (), np.geomspace(compute.min(), compute.max(), 60)
  if power:
    drawing.line(
      grid, power.predict(grid), power.describe(), color=INK, linestyle="--"
    )
    legend += (("╌", INK, "L = a C^-b"),)
    if (band := power.band(grid)) is not None:
      drawing.axes.fill_between(grid, *band, color=INK, alpha=0.12, linewidth=0)
  if offset:
    drawing.line(
      grid, offset.predict(grid), offset.describe(), color=INK, linestyle=":"
    )
    legend += (("┈", INK, "L = a C^-b + c"),)
  return legend


def _write_names(drawing, view, cells) -> None:
  for row in cells.itertuples():
    drawing.write(row.place, row.loss, str(row.along))
