"""The laws of a sweep's points so far, as a report's table tells them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from nfnets_tf.scaling import allocation, loss_surface, power_laws
from nfnets_tf.scaling.allocation import Exponents
from nfnets_tf.scaling.loss_surface import Surface
from nfnets_tf.scaling.overview import Overview
from nfnets_tf.scaling.power_laws import Law


@dataclasses.dataclass(frozen=True)
class Laws:
  """What can be fitted; whatever takes more points than there are is None.

  Attributes:
    points: the cells that it was fitted to: model, compute, loss, epochs, macs.
    power: L = a C^-b through the points that no cheaper one beats.
    offset: L = a C^-b + c, through the same.
    allocation: of `allocation.optimal_allocation`.
    exponents: of the best size and epochs, through the allocation.
    surface: of loss over size and epochs.
  """

  points: pd.DataFrame
  power: Law | None = None
  offset: Law | None = None
  allocation: pd.DataFrame | None = None
  exponents: Exponents | None = None
  surface: Surface | None = None


def law_points(view: Overview) -> pd.DataFrame:
  """Returns the cells that laws are fitted to: finished, at a known compute."""
  cells = view.cells[~view.cells["open"].astype(bool)]
  cells = cells[(cells["loss"] > 0) & (cells["compute"] > 0)]
  columns = ["model", "compute", "loss", "epochs", "macs"]
  return cells.rename(columns={"curve": "model"})[columns].reset_index(
    drop=True
  )


def fit_laws(
  points: pd.DataFrame, *, budgets: int, resamples: int, seed: int
) -> Laws:
  """Fits all that the points allow.

  Args:
    points: of `law_points`.
    budgets: see `allocation.optimal_allocation`.
    resamples: of each bootstrap.
    seed: of the resamples.
  """
  if not len(points):
    return Laws(points)
  drawing = {"resamples": resamples, "seed": seed}
  best = allocation.pareto_frontier(points)
  x, y = best["compute"], best["loss"]
  sizes = {"size": "macs"}
  flat = loss_surface.fit_surface(points, **sizes)
  return Laws(
    points,
    power_laws.bootstrap_law(power_laws.fit_power_law(x, y), x, y, **drawing),
    power_laws.bootstrap_law(power_laws.fit_offset_law(x, y), x, y, **drawing),
    allocation.optimal_allocation(points, budgets=budgets, **sizes),
    allocation.bootstrap_exponents(points, budgets=budgets, **sizes, **drawing),
    loss_surface.bootstrap_surface(flat, points, **sizes, **drawing),
  )


def tell_laws(found: Laws) -> pd.DataFrame:
  """Returns a row for each coefficient: its law, value and interval."""
  rows = []
  for title, law in (
    ("power law", found.power),
    ("law with offset", found.offset),
    ("optima between models", found.exponents),
    ("surface", found.surface),
  ):
    told = law.to_json() if law else {}
    for name, entry in told.items():
      if isinstance(entry, dict):
        low, high = entry["interval"] or (np.nan, np.nan)
        rows.append(
          {
            "law": told.get("form", title),
            "coefficient": name.replace("_", " "),
            "value": entry["value"],
            "95 % from": low,
            "to": high,
          }
        )
  return pd.DataFrame(rows)


def lacking(found: Laws) -> list[str]:
  """Returns a sentence for each law that there are not enough points for."""
  computes = found.points["compute"].nunique()
  have = f"there are {len(found.points)} finished cells at {computes} computes"
  needs = {
    "L = a C^-b": (found.power, "three points, each better than all cheaper"),
    "L = a C^-b + c": (
      found.offset,
      "four points, each better than all cheaper",
    ),
    "best size and epochs": (
      found.exponents,
      "optima between sizes at three computes over a factor of two",
    ),
    "L = c + A N^-u + B E^-v": (
      found.surface,
      "eight points of three sizes and three numbers of epochs",
    ),
  }
  return [
    f"{name}: not enough points; it takes {wanted}, {have}."
    for name, (law, wanted) in needs.items()
    if law is None
  ]
