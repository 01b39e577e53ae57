"""Checks of a configuration as a whole, before anything is built."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping

from nfnets_tf.config import bindings as bindings_lib
from nfnets_tf.config import error_messages
from nfnets_tf.config.bindings import GRID, Bindings, Macro, Reference
from nfnets_tf.errors import UserError
from nfnets_tf.ranges import declared

JOB = "config.Launch.job"


def check(bindings: Bindings) -> None:
  """Checks names, references and values.

  Raises:
    UserError: if a macro is set and never used or used and never set, a
      parameter does not exist, a flag binds one that nothing uses, or a
      required one is not bound.
  """
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


def check_ranges(bindings: Bindings) -> None:
  """Checks every value that a class or function declares a range for.

  References are skipped: what they return is checked when they are called.

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
    unknown = (Macro, Reference)
    if accepted is None or any(
      isinstance(leaf, unknown) for leaf in bindings_lib.leaves(value)
    ):
      continue
    if origin != name:
      words = f"{accepted.words} ({name})"
      accepted = dataclasses.replace(accepted, words=words)
    with _located(bindings.places[origin]):
      accepted.check(origin, value)


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


def _check_flags_used(bindings: Bindings) -> None:
  """Raises a UserError about a flag that binds what no reference calls.

  Files may: a recipe has values for the overlays that it can be joined with.
  """
  if JOB not in bindings:
    return  # said later
  roots = (name for name in bindings if name.startswith("config.Launch."))
  names = set().union(*map(bindings.dependencies, roots))
  used = {
    bindings.resolve(leaf.selector)
    for name in names
    for leaf in bindings_lib.leaves(bindings[name])
    if isinstance(leaf, Reference)
  }
  for name, place in bindings.places.items():
    if bindings_lib.is_macro(name) or not place.startswith("--"):
      continue
    _, selector, _ = bindings_lib.split_parameter(name)
    if selector.startswith("config.") or bindings.resolve(selector) in used:
      continue
    files = _files_with(f"@{selector}")
    hint = f"; --gin_file={files[0]} does" if files else ""
    raise UserError(f"{place}: nothing uses {selector}{hint}.")


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
