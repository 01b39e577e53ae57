"""The pictures of a study as a whole."""

from __future__ import annotations

import os

import numpy as np

from nfnets_tf.scaling.drawing import label, logarithmic, looks, picture
from nfnets_tf.scaling.figures import draw_losses, draw_rates
from nfnets_tf.scaling.observations import Columns
from nfnets_tf.scaling.study import Fits


def draw_study(fits: Fits, columns: Columns, directory: str) -> list[str]:
  """Draws a study's pictures; returns their paths.

  Args:
    fits: of the study.
    columns: that the axes are called by.
    directory: where loss.png, rates.png (if there are rates) and
      allocation.png go; it must exist.
  """
  if fits.points.empty:
    return []
  models = list(
    dict.fromkeys(fits.points.sort_values("size", kind="stable")["model"])
  )
  paths = [os.path.join(directory, "loss.png")]
  draw_losses(
    fits.points,
    paths[0],
    models=models,
    power=fits.power,
    offset=fits.offset,
    held_back=fits.held_back,
    labels={"compute": label(columns.compute), "loss": label(columns.loss)},
  )
  if len(fits.rates):
    paths.append(os.path.join(directory, "rates.png"))
    labels = {"epochs": label(columns.epochs), "rate": label(columns.rate)}
    draw_rates(fits.rates, paths[-1], models=models, labels=labels)
  paths.append(os.path.join(directory, "allocation.png"))
  draw_allocation(fits, columns, paths[-1], models=models)
  return paths


def draw_allocation(
  fits: Fits, columns: Columns, path: str, *, models: list[str]
) -> None:
  """Draws the best size and the best epochs against compute.

  Optima between models are filled, with their line; where the best model is the
  smallest or largest that was tried, it is hollow.

  Args:
    fits: of the study.
    columns: that the axes are called by.
    path: of the PNG.
    models: in the order of their sizes.
  """
  inside = fits.allocation[fits.allocation["state"] == "interior"]
  found = fits.exponents
  grid = np.geomspace(*fits.points["compute"].agg(["min", "max"]), 100)
  with picture(path, width=10.0, height=4.2, columns=2) as both:
    for axes, name, column in zip(both, ("size", "epochs"), ("size", "epochs")):
      for model, look in looks(models).items():
        own = fits.envelope[fits.envelope["model"] == model]
        axes.plot(
          own["compute"],
          own[column],
          linestyle="none",
          markerfacecolor="none",
          label=model,
          **look,
        )
      axes.plot(inside["compute"], inside[column], ".", color="black")
      if found is not None:
        k, power = (found.k, found.p) if name == "size" else (found.m, found.q)
        text = rf"best {name} $\sim C^{{{power:.2f}}}$"
        axes.plot(grid, k * grid**power, "--", color="black", label=text)
      what = columns.size if name == "size" else columns.epochs
      axes.set(xlabel=label(columns.compute), ylabel=f"best {label(what)}")
      logarithmic(axes, "x", fits.points["compute"])
      logarithmic(axes, "y", fits.points[column])
      axes.legend(fontsize="x-small")
