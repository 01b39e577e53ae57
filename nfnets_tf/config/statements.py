"""Reading gin's own listing of a configuration as {left: right} statements.

`gin.config_str()` prints every macro as `NAME = value` and every parameter as
`scope/module.Name.parameter = value`; both sides are kept as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

_START = re.compile(r"([A-Za-z_][\w./]*) = (.*)")
_STRINGS = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_MACRO = re.compile(r"%([A-Za-z_]\w*)")
_REFERENCE = re.compile(r"@((?:\w+/)*)((?:\w+\.)*\w+)(\(\))?")
_IMPORT = re.compile(r"from ([\w.]+) import (\w+)|import ([\w.]+)")


def split_statements(text: str) -> dict[str, str]:
  """Returns {left side: right side} of a listing by `gin.config_str()`."""
  statements, left = {}, None
  for line in text.splitlines():
    if line.startswith("#") or not line.strip():
      left = None
    elif match := _START.fullmatch(line):
      left, right = match.groups()
      statements[left] = right.rstrip("\\").strip()
    elif left is not None and line.startswith(" "):
      joined = f"{statements[left]} {line.strip()}"
      statements[left] = joined.strip()
  return statements


def import_lines(text: str) -> list[str]:
  """Returns the lines of a listing that import modules."""
  return [line for line in text.splitlines() if _IMPORT.match(line)]


def imported_modules(text: str) -> dict[str, str]:
  """Returns {name in the configuration: full name} of imported modules."""
  modules = {}
  for line in import_lines(text):
    package, name, plain = _IMPORT.match(line).groups()
    if package == "__gin__":
      continue
    modules[name or plain] = f"{package}.{name}" if package else plain
  return modules


def is_macro(left: str) -> bool:
  """Whether a left side names a macro rather than a parameter."""
  return "." not in left and "/" not in left


def macros_read(statements: Mapping[str, str]) -> dict[str, str]:
  """Returns {macro: a left side that reads it}."""
  return {
    macro: left
    for left, right in statements.items()
    for macro in _MACRO.findall(_STRINGS.sub("", right))
  }


def references(statements: Mapping[str, str]) -> set[tuple[str, str, bool]]:
  """Returns (scope, module.Name, called) of every reference."""
  return {
    (scope.rstrip("/"), selector, bool(called))
    for right in statements.values()
    for scope, selector, called in _REFERENCE.findall(_STRINGS.sub("", right))
  }


def reached(statements: Mapping[str, str], left: str) -> set[str]:
  """Returns `left` and the left sides of all that its value is built of."""
  found, waiting = set(), [left]
  while waiting:
    one = waiting.pop()
    if one in found or one not in statements:
      continue
    found.add(one)
    part = {one: statements[one]}
    waiting += macros_read(part)
    selectors = {selector for _, selector, _ in references(part)}
    waiting += [x for x in statements if split_parameter(x)[1] in selectors]
  return found


def of_package(text: str, package: str) -> set[str]:
  """Returns the left sides of a listing that bind something in a package."""
  modules = imported_modules(text)
  return {
    left
    for left in split_statements(text)
    if modules.get(split_parameter(left)[1].split(".")[0], "").startswith(
      f"{package}."
    )
  }


def without(text: str, lefts: Set[str]) -> str:
  """Returns a listing without some statements and the imports for them alone.

  Args:
    text: by `gin.config_str()`.
    lefts: left sides that are dropped.
  """
  statements = split_statements(text)
  kept = {x: y for x, y in statements.items() if x not in lefts}
  used, dropped = _modules_used(kept), set(statements) - set(kept)
  unused = {split_parameter(left)[1].split(".")[0] for left in dropped} - used
  names = {line: _IMPORT.match(line).groups() for line in import_lines(text)}
  lines = [
    x for x, (_, name, plain) in names.items() if (name or plain) not in unused
  ]
  return "\n".join([*lines, *(f"{x} = {y}" for x, y in kept.items())])


def _modules_used(statements: Mapping[str, str]) -> set[str]:
  selectors = {split_parameter(left)[1] for left in statements}
  selectors |= {selector for _, selector, _ in references(statements)}
  return {selector.split(".")[0] for selector in selectors}


def split_parameter(left: str) -> tuple[str, str, str]:
  """Splits "scope/module.Name.parameter" into its three parts."""
  scope, _, path = left.rpartition("/")
  selector, _, parameter = path.rpartition(".")
  return scope, selector, parameter


def differences(
  before: Mapping[str, str], after: Mapping[str, str]
) -> list[tuple[str, str | None, str | None]]:
  """Returns (left, value before, value after) where the two differ."""
  lefts = [*after, *(left for left in before if left not in after)]
  return [
    (left, before.get(left), after.get(left))
    for left in lefts
    if before.get(left) != after.get(left)
  ]
