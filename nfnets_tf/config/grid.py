"""The axes of a sweep: `config.grid.EPOCHS = (1, 2, 4)` in a gin file."""

from __future__ import annotations

import itertools
import re

from nfnets_tf.config.bindings import (
  GRID,
  Bindings,
  Macro,
  Reference,
  leaves,
)
from nfnets_tf.errors import UserError, require

_MACRO = re.compile(r"[A-Za-z_][\w./]*")


def grid(**axes) -> list[dict]:
  """Returns the points of a grid, the last axis varying fastest.

  The axes are sorted by name.

  Args:
    **axes: {macro: its values}. A value that is a dictionary sets several
      macros together; the axis is then only a name.

  Returns:
    {macro: value} of each point.

  Raises:
    UserError: if an axis has no values or an invalid macro, or two axes set
      the same macro.
  """
  choices = []
  for name, values in sorted(axes.items()):
    _check_axis(name, values)
    choices.append(
      [value if isinstance(value, dict) else {name: value} for value in values]
    )
  points = []
  for parts in itertools.product(*choices) if choices else ():
    point = {macro: value for part in parts for macro, value in part.items()}
    if len(point) < sum(map(len, parts)):
      raise UserError(
        "two axes of config.grid set the same macro, one of"
        f" {', '.join(point)}; remove it from one of them."
      )
    points.append(point)
  return points


def read_grid(bindings: Bindings) -> list[dict]:
  """Returns the points of a configuration's grid; none if it has no grid.

  Raises:
    UserError: if an axis is invalid.
  """
  axes = {}
  for name, values in bindings.items():
    if name.startswith(f"{GRID}."):
      require(
        not any(isinstance(x, (Macro, Reference)) for x in leaves(values)),
        name,
        values,
        "a list of numbers, strings or other literals, such as (0.25, 0.5, 1)",
      )
      axes[name[len(f"{GRID}.") :]] = values
  return grid(**axes)


def _check_axis(axis: str, values) -> None:
  name = f"{GRID}.{axis}"
  is_list = isinstance(values, (tuple, list)) and len(values) > 0
  require(
    is_list,
    name,
    values,
    "a list of at least one value, such as (0.25, 0.5, 1)",
  )
  for macros in [value for value in values if isinstance(value, dict)]:
    require(
      macros and all(map(_is_macro, macros)),
      f"{name}: a value",
      macros,
      "{macro: value}, such as {'VARIANT': 'F0', 'EPOCHS': 1}",
    )


def _is_macro(name) -> bool:
  return isinstance(name, str) and _MACRO.fullmatch(name) is not None
