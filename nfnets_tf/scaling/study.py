"""All that is fitted to a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pandas as pd

from nfnets_tf.scaling import frontier, laws, surface
from nfnets_tf.scaling.held_back import HeldBack, predict_held_back
from nfnets_tf.scaling.observations import (
  Columns,
  best_of_cells,
  best_rates,
  read_points,
)

BUDGETS = 25  # computes at which the best size is looked for


@dataclasses.dataclass(frozen=True)
class Fits:
  """What is fitted to a study; None where the points are too few.

  Attributes:
    points: the best run of each model and number of epochs: columns model,
      compute, loss, epochs, size and rate, cheapest first.
    left_out: {why: number of rows that are no points}.
    envelope: the points that no cheaper one beats.
    rates: the best rate of each model and number of epochs, and `edge`: "lower"
      or "upper" if it is the lowest or highest that was tried, "only" if no
      other was, else empty.
    power: L = a C^-b of the envelope.
    offset: L = a C^-b + c of the envelope.
    held_back: what the cheap part of the envelope predicts of the rest.
    allocation: see `frontier.optimal_allocation`.
    exponents: of the best size and epochs.
    surface: loss over size and epochs.
  """

  points: pd.DataFrame
  left_out: dict[str, int]
  envelope: pd.DataFrame
  rates: pd.DataFrame
  power: laws.Law | None
  offset: laws.Law | None
  held_back: HeldBack
  allocation: pd.DataFrame
  exponents: frontier.Exponents | None
  surface: surface.Surface | None

  def to_json(self) -> dict:
    """Returns every fitted coefficient with its interval."""

    def told(fit):
      return None if fit is None else fit.to_json()

    return {
      "points": len(self.points),
      "left_out": self.left_out,
      "envelope_points": len(self.envelope),
      "power_law": told(self.power),
      "offset_law": told(self.offset),
      "held_back": self.held_back.to_json(),
      "allocation": told(self.exponents),
      "surface": told(self.surface),
    }

  def describe(self) -> list[tuple[str, str]]:
    """Returns the main numbers as lines of two columns."""
    few, back = "not enough points", self.held_back
    count = f"{len(self.points)}, {len(self.envelope)} of them on the frontier"
    lines = [("points", count)]
    lines += [("left out", f"{n}, {why}") for why, n in self.left_out.items()]
    for name, law in (("law", self.power), ("with offset", self.offset)):
      text = f"{law.describe()}, rms {law.rms:.2%}" if law else few
      lines.append((name, text))
    lines.append(("held back", f"predicted to {back.describe(back.power)}"))
    lines.append(("with offset", f"predicted to {back.describe(back.offset)}"))
    if self.exponents is None:
      return [*lines, ("best size", f"{few} with a best size in between")]
    told = self.exponents.to_json()
    for name, key in (
      ("size ~ C^p", "size_exponent"),
      ("epochs ~ C^q", "epochs_exponent"),
    ):
      text = f"{told[key]['value']:.3g}"
      if told[key]["interval"] is not None:
        text += " ({:.3g} to {:.3g})".format(*told[key]["interval"])
      lines.append((name, text))
    return lines


def fit_study(
  table: pd.DataFrame,
  columns: Columns,
  *,
  held_back_from: float | None,
  resamples: int,
  seed: int,
) -> Fits:
  """Fits all laws to a table.

  Args:
    table: see `read_points`.
    columns: which are which.
    held_back_from: compute from which on points are predicted by those below;
      None is the geometric mean of the ends.
    resamples: of each bootstrap.
    seed: of the resamples.

  Raises:
    UserError: if a column does not exist.
  """
  every, left_out = read_points(table, columns)
  points = best_of_cells(every)
  hull = frontier.envelope(points)
  draw = {"resamples": resamples, "seed": seed}
  on_hull = hull["compute"], hull["loss"]

  def fit(kind: Callable):
    return laws.bootstrap(kind(*on_hull), *on_hull, **draw)

  return Fits(
    points=points,
    left_out=left_out,
    envelope=hull,
    rates=best_rates(every),
    power=fit(laws.fit_power_law),
    offset=fit(laws.fit_offset_law),
    held_back=predict_held_back(*on_hull, threshold=held_back_from, **draw),
    allocation=frontier.optimal_allocation(
      points, size="size", budgets=BUDGETS
    ),
    exponents=frontier.bootstrap_exponents(
      points, size="size", budgets=BUDGETS, **draw
    ),
    surface=surface.bootstrap_surface(
      surface.fit_surface(points, size="size"), points, size="size", **draw
    ),
  )
