"""The axes of a sweep: `config.grid.EPOCHS = (1, 2, 4)` in a gin file."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping

from nfnets_tf.errors import UserError

_GRID = "config.grid."
_NAME = re.compile(r"[A-Za-z_][\w./]*")


def grid(**axes) -> list[dict]:
  """Returns the points of a grid, the last axis varying fastest.

  The axes are in the order of their names, as gin lists them.

  Args:
    **axes: {macro: its values}. Where a value is a dictionary, it sets several
      macros together, and the axis is only a name.

  Returns:
    {macro: value} of each point.

  Raises:
    UserError: if an axis has no values or no names of macros, or two axes set
      the same macro.
  """
  choices = [
    [value if isinstance(value, dict) else {name: value} for value in values]
    for name, values in sorted(axes.items())
    if _check_axis(name, values)
  ]
  points = []
  for parts in itertools.product(*choices) if choices else ():
    point = {macro: value for part in parts for macro, value in part.items()}
    if len(point) < sum(map(len, parts)):
      raise UserError(
        f"two axes of config.grid set the same macro ({', '.join(point)} in"
        " all); leave one of them out."
      )
    points.append(point)
  return points


def read_grid(statements: Mapping[str, str]) -> list[dict]:
  """Returns the points of a configuration's grid; none if it has no grid.

  Args:
    statements: {left side: right side}.

  Raises:
    UserError: if an axis cannot be read.
  """
  axes = {}
  for left, right in statements.items():
    if left.startswith(_GRID):
      try:
        axes[left[len(_GRID) :]] = ast.literal_eval(right)
      except (ValueError, SyntaxError) as error:
        raise UserError(
          f"{left} = {right} cannot be used; expected a list of numbers,"
          " strings or other plain values, such as (0.25, 0.5, 1)."
        ) from error
  return grid(**axes)


def _check_axis(name: str, values) -> bool:
  if not isinstance(values, (tuple, list)) or not values:
    raise UserError(
      f"{_GRID}{name} = {values!r} cannot be used; expected a list of at least"
      " one value, such as (0.25, 0.5, 1)."
    )
  for value in values:
    if isinstance(value, dict) and not (value and all(map(_is_name, value))):
      raise UserError(
        f"{_GRID}{name} holds {value!r}, which cannot be used; expected"
        " {macro: value}, such as {'VARIANT': 'F0', 'EPOCHS': 1}."
      )
  return True


def _is_name(key) -> bool:
  return isinstance(key, str) and _NAME.fullmatch(key) is not None
