"""Checks of a configuration as a whole, before anything is built."""

from __future__ import annotations

import cmath
import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence

from nfnets_tf.config import bindings as bindings_lib
from nfnets_tf.config import error_messages
from nfnets_tf.config.bindings import GRID, Bindings, Macro, Reference
from nfnets_tf.errors import UserError, require
from nfnets_tf.ranges import declared

JOB = "config.Launch.job"


def check(bindings: Bindings) -> None:
  """Checks names, references and values.

  Raises:
    UserError: if a number is not finite, a macro is set and never used or used
      and never set, a parameter does not exist, a flag binds one that nothing
      uses, or a required one is not bound.
  """
  _check_finite(bindings)
  uses = [
    (leaf, name)
    for name, value in bindings.items()
    for leaf in bindings_lib.leaves(value)
    if isinstance(leaf, (Macro, Reference))
  ]
  _check_macros(
    bindings, {x.name: name for x, name in uses if isinstance(x, Macro)}
  )
  for name in bindings:
    if bindings_lib.is_macro(name):
      continue
    _, selector, parameter = bindings_lib.split_parameter(name)
    with _located(bindings.places[name]):
      names = bindings.parameters(selector)
      # The axes of a grid are macros, which are checked when they are set.
      if parameter not in names and selector != GRID:
        raise UserError(
          f"{selector} has no parameter {parameter!r}"
          f"{error_messages.nearest(parameter, names)}"
        )
  references = {use for use in uses if isinstance(use[0], Reference)}
  for reference, name in sorted(references, key=repr):
    with _located(bindings.places[name]):
      parameters = bindings.parameters(reference.selector)
    if reference.called:
      _check_complete(bindings, reference, parameters)
  _check_flags_used(bindings)
  check_ranges(bindings)


def _check_finite(bindings: Bindings) -> None:
  """Raises a UserError about 1e999, which a config.gin could not hold."""
  for name, value in bindings.items():
    for leaf in bindings_lib.leaves(value):
      if isinstance(leaf, (float, complex)) and not cmath.isfinite(leaf):
        place = bindings.places[name]
        raise UserError(
          f"{place}: {leaf} is not finite; bind a smaller number."
        )


def check_ranges(bindings: Bindings) -> None:
  """Checks every value that a class or function declares a range for.

  What references return is checked when they are called.

  Raises:
    UserError: if a value is out of range; names the macro or the parameter.
  """
  for name in bindings:
    if bindings_lib.is_macro(name) or name.startswith(f"{GRID}."):
      continue
    _, selector, parameter = bindings_lib.split_parameter(name)
    with _located(bindings.places[name]):
      accepted = declared(bindings.resolve(selector)).get(parameter)
    origin, value = bindings.value(name)
    if accepted is None or any(
      isinstance(leaf, Macro) or isinstance(leaf, Reference) and leaf.called
      for leaf in bindings_lib.leaves(value)
    ):
      continue
    words = accepted.words + (f" ({name})" if origin != name else "")
    with _located(bindings.places[origin]):
      is_valid = accepted.contains(_referred(bindings, value))
      require(is_valid, origin, value, words)


def _referred(bindings: Bindings, value):
  """Returns a value with what its references name in place of them."""
  if isinstance(value, Reference):
    return bindings.resolve(value.selector)
  if isinstance(value, (list, tuple)):
    return type(value)(_referred(bindings, item) for item in value)
  return value


@contextlib.contextmanager
def _located(place: str) -> Iterator[None]:
  """Prefixes the message of a UserError with the place of a binding."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{place}: {error}") from error


def _check_macros(bindings: Bindings, used: Mapping[str, str]) -> None:
  defined = {name for name in bindings if bindings_lib.is_macro(name)}
  for macro in sorted(defined - set(used)):
    raise UserError(
      f"{bindings.places[macro]}: {macro} is set, but nothing uses"
      f" it{error_messages.nearest(macro, used)}"
    )
  for macro in sorted(set(used) - defined):
    raise UserError(
      f"{macro} is not set, but {used[macro]} needs it; add"
      f' --gin_param="{macro} = ..." or a gin file that sets'
      f" it{error_messages.nearest(macro, defined)}"
    )
  for macro in sorted(defined):
    for leaf in bindings_lib.leaves(bindings.value(macro)[1]):
      if isinstance(leaf, Macro):
        raise UserError(
          f"{bindings.places[macro]}: {macro} is set to itself, by way of"
          f" %{leaf.name}; set it to a value."
        )


def _check_flags_used(bindings: Bindings) -> None:
  """Raises a UserError about a flag that binds what no reference calls.

  Files may: a recipe has values for the overlays that it can be joined with.
  """
  if JOB not in bindings:
    return  # said later
  roots = (name for name in bindings if name.startswith("config.Launch."))
  names = set().union(*map(bindings.dependencies, roots))
  references = [
    leaf
    for name in names
    for leaf in bindings_lib.leaves(bindings[name])
    if isinstance(leaf, Reference)
  ]
  used = {bindings.resolve(leaf.selector) for leaf in references}
  scopes = {x for leaf in references for x in _outer_scopes(leaf.scope)}
  for name, place in bindings.places.items():
    if bindings_lib.is_macro(name) or not place.startswith("--"):
      continue
    scope, selector, _ = bindings_lib.split_parameter(name)
    if selector.startswith("config."):
      continue
    if bindings.resolve(selector) not in used:
      files = _files_with(f"@{selector}")
      hint = f"; --gin_file={files[0]} does" if files else ""
      raise UserError(f"{place}: nothing uses {selector}{hint}.")
    if scope not in scopes:
      hint = error_messages.nearest(scope, scopes)
      raise UserError(f"{place}: no reference has the scope {scope!r}{hint}")
    if stronger := _bound_within(bindings, name, references):
      raise UserError(
        f"{place}: nothing uses it, since narrower scopes bind"
        f" {' and '.join(stronger)}; bind those instead."
      )


def _outer_scopes(scope: str) -> list[str]:
  """Returns "", "a", "a/b" of the scope "a/b"."""
  parts = scope.split("/") if scope else []
  return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _bound_within(
  bindings: Bindings, name: str, references: Sequence[Reference]
) -> list[str]:
  """Returns the bindings that hide one from all references; [] if none do.

  A reference without a scope is evaluated in the scope of another one.
  """
  scope, selector, parameter = bindings_lib.split_parameter(name)
  stronger = []
  for reference in (x for x in references if x.selector == selector):
    within = [
      bound
      for outer in _outer_scopes(reference.scope)
      if (bound := f"{outer}/{selector}.{parameter}") in bindings
      and len(outer) > len(scope)
    ]
    if not within:
      return []
    stronger += within[-1:]
  return sorted(set(stronger))


def _check_complete(
  bindings: Bindings,
  reference: Reference,
  parameters: Mapping[str, inspect.Parameter],
) -> None:
  for name, parameter in parameters.items():
    scopes = reference.scope.split("/") if reference.scope else []
    full = f"{reference.selector}.{name}"
    scoped = "/".join([*scopes, full])
    required = parameter.default is inspect.Parameter.empty
    # What is bound in scope a, or in none, holds in scope a/b as well.
    bound = any(
      "/".join([*scopes[:depth], full]) in bindings
      for depth in range(len(scopes) + 1)
    )
    if required and not bound:
      raise UserError(
        f"{scoped} is not bound and has no default; add"
        f' --gin_param="{scoped} = ..." or a gin file that binds it.'
      )


def _files_with(text: str) -> list[str]:
  """Returns the paths of the project's gin files that contain a text.

  Overlays come first, then the files that fewer directories hold.
  """
  files = [
    file.relative_to(bindings_lib.ROOT).as_posix()
    for file in (bindings_lib.ROOT / "gin").rglob("*.gin")
    if text in file.read_text()
  ]
  return sorted(files, key=lambda x: ("overlays" not in x, x.count("/"), x))
