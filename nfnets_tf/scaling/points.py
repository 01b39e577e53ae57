"""The points of a sweep: their names, their order, who is whose neighbour."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nfnets_tf.errors import UserError

_ODD = re.compile(r"[^\w.+-]+")


class Point(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: of its folder, such as "VARIANT=F0,EPOCHS=0.25".
    bindings: {macro: value}.
    cell: name of the point of the grid that it belongs to: its own, or, where
      one number is tuned, that without the number.
  """

  name: str
  bindings: dict
  cell: str


def name_of(bindings: Mapping) -> str:
  """Returns the name of a point's folder."""
  return ",".join(
    f"{_plain(m)}={_plain(value)}" for m, value in bindings.items()
  )


def _plain(value) -> str:
  if isinstance(value, (int, float)):
    return str(value)  # with its sign
  return _ODD.sub("-", str(value)).strip("-")


def cells_of(grid: Sequence[Mapping]) -> list[Point]:
  """Returns the grid's points by name.

  Args:
    grid: {macro: value} of each.

  Raises:
    UserError: if there are none, or two of them would share a folder.
  """
  if not grid:
    raise UserError(
      "the sweep has no points; bind an axis, such as config.grid.EPOCHS ="
      " (0.25, 0.5, 1)."
    )
  cells = [Point(name_of(b), dict(b), name_of(b)) for b in grid]
  for name, count in collections.Counter(c.name for c in cells).items():
    if count > 1:
      raise UserError(
        f"two points of the sweep are called {name!r}; give each axis values"
        " that differ in letters or digits."
      )
  return cells


def trial_of(cell: Point, macro: str, value: float) -> Point:
  """Returns the point that tries a value of what is tuned, in a cell."""
  bindings = {**cell.bindings, macro: value}
  return Point(name_of(bindings), bindings, cell.name)


def trial_prefix(cell: Point, macro: str) -> str:
  """Returns what the names of a cell's trials begin with."""
  return f"{cell.name},{_plain(macro)}="


def nearest_first(cells: Sequence[Point], cell: Point) -> list[Point]:
  """Returns the other cells, those with the fewest steps on the grid first."""
  macros = dict.fromkeys(macro for other in cells for macro in other.bindings)
  axes = {
    m: list(dict.fromkeys(repr(other.bindings.get(m)) for other in cells))
    for m in macros
  }

  def place(one):
    return [axes[m].index(repr(one.bindings.get(m))) for m in macros]

  here = place(cell)
  others = [other for other in cells if other != cell]
  return sorted(
    others, key=lambda o: sum(abs(a - b) for a, b in zip(place(o), here))
  )


def select_cells(cells: Sequence[Point], given: str) -> list[Point]:
  """Returns the cells that `--points` names by number.

  Args:
    cells: all, in order.
    given: "7" is the seventh; "3/12" are the third, the fifteenth and so on.

  Raises:
    UserError: if there are no such points.
  """
  first, _, share = given.partition("/")
  number, step = int(first), int(share or len(cells))
  if not 1 <= number <= step:
    raise UserError(
      f"--points={given} cannot be used; the sweep's {len(cells)} points are"
      f" numbered from 1 to {len(cells)}, and of n shares the k-th is k/n, k"
      " from 1 to n."
    )
  return list(cells[number - 1 :: step])
