"""Ranges of arguments, declared by the class or function that takes them.

  @accepts(peak=number(0), total_steps=integer(1))
  def schedule(*, peak, total_steps): ...

Every call checks its arguments; a configuration reads the declarations and
checks its bindings before anything is built.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TypeVar

from nfnets_tf.errors import require

_Target = TypeVar("_Target", bound=Callable)

MAX_SIDE = 8_192  # of an image, in pixels
_MAX_SEED = 2**32 - 1  # of NumPy's generators
_MAX_INT64 = 2**63 - 1
_MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


@dataclasses.dataclass(frozen=True)
class Range:
  """The values that an argument accepts.

  Attributes:
    contains: returns whether a value is one of them.
    words: what they are, to follow "expected".
  """

  contains: Callable[[object], bool]
  words: str

  def check(self, name: str, value: object) -> None:
    """Raises a UserError about the parameter `name` unless it accepts a value.

    Args:
      name: as a gin file binds it.
      value: that was given.
    """
    require(self.contains(value), name, value, self.words)


def number(
  least: float = -math.inf,
  most: float = math.inf,
  *,
  above: float = -math.inf,
  below: float = math.inf,
) -> Range:
  """Accepts finite numbers, of NumPy's types too; neither bools nor strings.

  What float32 cannot hold is not finite either.

  Args:
    least: smallest one.
    most: largest one.
    above: they are greater than this.
    below: they are less than this.
  """

  def contains(value):
    valid = isinstance(value, Real) and not isinstance(value, bool)
    # Comparisons with NaN are false.
    return valid and (
      -_MAX_FLOAT32 <= value <= _MAX_FLOAT32
      and least <= value <= most
      and above < value < below
    )

  finite = "" if min(most, below) < math.inf else "finite "
  bounds = _bounds(least, most, above, below)
  return Range(contains, f"a {finite}number{bounds}")


def integer(least: int, most: int | None = None) -> Range:
  """Accepts integers, of NumPy's types too, but no bools.

  Args:
    least: smallest one.
    most: largest one; None is that of int64.
  """

  def contains(value):
    valid = isinstance(value, Integral) and not isinstance(value, bool)
    return valid and least <= value <= (_MAX_INT64 if most is None else most)

  bounds = _bounds(least, math.inf if most is None else most)
  return Range(contains, f"an integer{bounds}")


def _bounds(least, most, above=-math.inf, below=math.inf) -> str:
  if -math.inf < least and most < math.inf:
    return f" from {least:,} to {most:,}"
  signs = {">=": least, ">": above, "<=": most, "<": below}
  parts = [f"{s} {x:,}" for s, x in signs.items() if math.isfinite(x)]
  return f" {' and '.join(parts)}" if parts else ""


COUNT = integer(1)
STEPS = integer(1, 10**12)  # of a run
RATE = number(0, below=1)
SEED = integer(0, _MAX_SEED)


def side() -> Range:
  """Accepts sides of square images, in pixels."""
  pixels = integer(1, MAX_SIDE)
  words = f"{pixels.words}, the side of a square image in pixels"
  return dataclasses.replace(pixels, words=words)


TEXT = Range(lambda value: isinstance(value, str), "a string in quotes")
PATH = Range(
  lambda value: isinstance(value, (str, os.PathLike)) and bool(str(value)),
  "a path in quotes",
)


def flag() -> Range:
  """Accepts True and False."""
  return Range(lambda value: isinstance(value, bool), "True or False")


def one_of(*choices: str) -> Range:
  """Accepts some strings.

  Args:
    *choices: all of them.
  """
  *rest, last = map(repr, choices)
  words = f"{', '.join(rest)} or {last}"
  return Range(lambda x: isinstance(x, str) and x in choices, words)


def function(example: str) -> Range:
  """Accepts functions and classes, which are called later.

  Args:
    example: how a gin file names one.
  """
  return Range(callable, f"a reference without quotes, such as {example}")


def built(example: str) -> Range:
  """Accepts objects, but neither what would build one nor numbers and texts.

  Args:
    example: how a gin file builds one.
  """
  # Functions, numbers, strings and lists are of builtin types.
  return Range(
    lambda value: (
      not inspect.isclass(value) and type(value).__module__ != "builtins"
    ),
    f"an object, built by a reference with parentheses, such as {example}",
  )


def transform(example: str) -> Range:
  """Accepts functions and callable objects, but no classes.

  Args:
    example: how a gin file builds one.
  """
  return Range(
    lambda value: callable(value) and not inspect.isclass(value),
    f"built by a reference with parentheses, such as {example}",
  )


def optional(values: Range) -> Range:
  """Accepts None as well.

  Args:
    values: accepted beside None.
  """
  return Range(
    lambda value: value is None or values.contains(value),
    f"{values.words}, or None",
  )


def each(values: Range, length: int | None = None) -> Range:
  """Accepts lists and tuples.

  Args:
    values: accepted elements.
    length: number of the elements; None accepts any.
  """

  def contains(value):
    return (
      isinstance(value, Sequence)
      and not isinstance(value, str)
      and length in (None, len(value))
      and all(map(values.contains, value))
    )

  count = "a list" if length is None else f"a list of {length}"
  return Range(contains, f"{count}, each {values.words}")


def mapping(values: Range) -> Range:
  """Accepts mappings that are not empty.

  Args:
    values: accepted values; keys are free.
  """

  def contains(value):
    entries = list(value.values()) if isinstance(value, Mapping) else []
    return bool(entries) and all(map(values.contains, entries))

  return Range(contains, f"a mapping whose values are each {values.words}")


def either(*ranges: Range) -> Range:
  """Accepts what at least one range accepts.

  Args:
    *ranges: all of them.
  """
  return Range(
    lambda value: any(x.contains(value) for x in ranges),
    ", or ".join(x.words for x in ranges),
  )


def ascending(values: Range) -> Range:
  """Accepts pairs (smallest, largest).

  Args:
    values: accepted elements.
  """
  pairs = each(values, 2)
  return Range(
    lambda value: pairs.contains(value) and value[0] <= value[1],
    f"(smallest, largest), each {values.words}",
  )


def accepts(**ranges: Range) -> Callable[[_Target], _Target]:
  """Declares and checks the ranges of a function's or a class's parameters.

  Args:
    **ranges: {parameter: its range}.
  """

  def decorate(target):
    is_class = inspect.isclass(target)
    function = target.__init__ if is_class else target
    signature = inspect.signature(function)
    if unknown := ranges.keys() - signature.parameters.keys():
      raise TypeError(f"{target.__qualname__} has no parameters {unknown}")
    prefix = f"{target.__module__.rpartition('.')[2]}.{target.__qualname__}"

    @functools.wraps(function)
    def checked(*args, **kwargs):
      try:
        arguments = signature.bind(*args, **kwargs).arguments
      except TypeError:
        arguments = {}  # the call below says what is wrong
      for name, value in arguments.items():
        if name in ranges:
          ranges[name].check(f"{prefix}.{name}", value)
      return function(*args, **kwargs)

    if is_class:
      target.__init__ = checked
    else:
      target = checked
    declare(target, **ranges)
    return target

  return decorate


_DECLARED: dict[Callable, dict[str, Range]] = {}


def declare(target: Callable, /, **ranges: Range) -> None:
  """Declares the ranges of a library's class or function, unchecked by calls.

  Args:
    target: the class or function.
    **ranges: {parameter: its range}.
  """
  _DECLARED.setdefault(target, {}).update(ranges)


def declared(target: Callable) -> dict[str, Range]:
  """Returns {parameter: its range} of a class or function.

  A subclass has the ranges of its bases.
  """
  found = {}
  for base in reversed(getattr(target, "__mro__", (target,))):
    found.update(_DECLARED.get(base, {}))
  return found
