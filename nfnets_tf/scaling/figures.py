"""The scaling paper's three figures, of any study.

Tables have the columns that `points` gives.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nfnets_tf.scaling.drawing import logarithmic, looks, picture
from nfnets_tf.scaling.held_back import HeldBack
from nfnets_tf.scaling.laws import Law

_STARS = ("C3", "C1", "C6", "C9")
_TREND = {"color": "black", "linewidth": 1.3}


def draw_losses(
  points: pd.DataFrame,
  path: str,
  *,
  models: list[str],
  power: Law | None,
  offset: Law | None,
  held_back: HeldBack | None,
  labels: Mapping[str, str],
) -> None:
  """Draws loss against compute, one curve a model, with the laws: figure 2.

  Args:
    points: columns model, compute and loss.
    path: of the PNG.
    models: in the order of the legend.
    power: L = a C^-b, a dashed line, with its 95 % band.
    offset: L = a C^-b + c, a dotted line.
    held_back: what the law below a threshold predicts, hollow circles.
    labels: {"compute", "loss": of the axes}.
  """
  with picture(path, width=7.4, height=5.4) as (axes,):
    _draw_curves(axes, points, models, "loss")
    _draw_laws(axes, points["compute"], power, offset)
    if held_back and held_back.power and held_back.compute:
      _draw_held_back(axes, held_back)
    axes.set(xlabel=labels["compute"], ylabel=labels["loss"])
    logarithmic(axes, "x", points["compute"])
    shown = [*points["loss"]]
    if held_back and held_back.power:
      shown += held_back.power.predict(held_back.compute).tolist()
    logarithmic(axes, "y", shown)
    axes.legend()


def draw_rates(
  rates: pd.DataFrame,
  path: str,
  *,
  models: list[str],
  labels: Mapping[str, str],
) -> None:
  """Draws the best learning rate against epochs, a line a model: figure 3.

  Args:
    rates: columns model, epochs and rate; where there is a column edge, rates
      beyond which a better one may lie get an arrow to there.
    path: of the PNG.
    models: in the order of the legend.
    labels: {"epochs", "rate": of the axes}.
  """
  arrows = {"lower": "v", "upper": "^", "only": "d"}
  with picture(path, width=6.4, height=4.4) as (axes,):
    # Lines that lie on each other stay visible: the first is the widest.
    widths = np.linspace(5.0, 1.5, max(1, len(models)))
    for (model, look), width in zip(looks(models).items(), widths):
      own = rates[rates["model"] == model].sort_values("epochs")
      axes.plot(
        own["epochs"],
        own["rate"],
        label=model,
        linewidth=width,
        markersize=3.0 + 2.0 * width,
        **look,
      )
      if "edge" in own:
        for edge, arrow in arrows.items():
          at = own[own["edge"] == edge]
          kind = {"marker": arrow, "color": "white", "edgecolor": "black"}
          axes.scatter(at["epochs"], at["rate"], s=30, zorder=5, **kind)
    axes.set(xlabel=labels["epochs"], ylabel=labels["rate"])
    logarithmic(axes, "x", rates["epochs"])
    logarithmic(axes, "y", rates["rate"])
    axes.legend()


def draw_errors(
  points: pd.DataFrame,
  others: pd.DataFrame,
  path: str,
  *,
  models: list[str],
  labels: Mapping[str, str],
) -> None:
  """Draws error after fine-tuning against compute of pre-training: figure 1.

  Args:
    points: columns model, compute and error.
    others: the same, of other systems: one star each.
    path: of the PNG.
    models: in the order of the legend.
    labels: {"compute", "error": of the axes}.
  """
  with picture(path, width=7.4, height=5.4) as (axes,):
    _draw_curves(axes, points, models, "error")
    for number, row in enumerate(others.itertuples()):
      axes.plot(
        row.compute,
        row.error,
        "*",
        label=row.model,
        color=_STARS[number % len(_STARS)],
        markeredgecolor="black",
        markersize=15,
      )
    axes.set(xlabel=labels["compute"], ylabel=labels["error"])
    every = pd.concat([points, others])
    logarithmic(axes, "x", every["compute"])
    logarithmic(axes, "y", every["error"])
    axes.legend()


def _draw_curves(axes, points, models, what) -> None:
  for model, look in looks(models).items():
    own = points[points["model"] == model].sort_values("compute")
    axes.plot(own["compute"], own[what], label=model, **look)


def _draw_laws(axes, compute, power, offset) -> None:
  grid = np.geomspace(compute.min(), compute.max(), 200)
  if power:
    text = rf"${power.a:.3g}\,C^{{-{power.b:.3g}}}$"
    axes.plot(grid, power.predict(grid), "--", label=text, **_TREND)
    if (band := power.band(grid)) is not None:
      axes.fill_between(grid, *band, color="black", alpha=0.10, linewidth=0)
  if offset:
    text = rf"${offset.a:.3g}\,C^{{-{offset.b:.3g}}} + {offset.c:.3g}$"
    axes.plot(grid, offset.predict(grid), ":", label=text, **_TREND)


def _draw_held_back(axes, held_back: HeldBack) -> None:
  axes.axvline(held_back.threshold, color="0.5", linewidth=0.8, linestyle="-.")
  axes.plot(
    held_back.compute,
    held_back.power.predict(held_back.compute),
    "o",
    label="predicted from the left",
    markersize=8,
    markerfacecolor="none",
    markeredgecolor="C3",
  )
