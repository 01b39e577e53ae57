"""What is wrong with a configuration, in one sentence with the nearest name."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping

from nfnets_tf.config import statements as st
from nfnets_tf.errors import UserError

_IMPORTS_NEEDED = (
  "begin the file with 'from __gin__ import dynamic_registration' and import"
  " the module"
)
_PLACE = re.compile(r'In file "([^"]+)", line (\d+)')
_UNKNOWN = re.compile(
  r"(?:No configurable matching (?:reference )?'@?|resolve selector )([\w./]+)"
)
_NOT_IMPORTED = re.compile(r"'(\w+)' was not provided by an import")
_NO_PARAMETER = re.compile(r"'([\w.]+)' doesn't have a parameter named '(\w+)'")
_NO_FILE = re.compile(r"Unable to open file: (\S+)\.")
_MISSING = re.compile(r"missing \d+ required .*?: (.*)")
_CALLED = re.compile(r"In call to configurable '([^']+)'")


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns ", did you mean X" for the closest of `names`, or nothing."""
  close = difflib.get_close_matches(name, sorted(set(names)), n=1, cutoff=0.6)
  return f"; did you mean {close[0]!r}?" if close else "."


def no_such_file(path: str, known: Iterable[str]) -> UserError:
  """The complaint about a gin file that cannot be found."""
  return UserError(
    f"the gin file {path!r} does not exist{nearest(path, known)}"
  )


def of_parse_error(
  error: Exception, given: str, listing: str, known_files: Iterable[str]
) -> UserError:
  """Turns what gin says while it parses into one sentence.

  Args:
    error: gin's exception.
    given: what was being parsed: a file's path or a binding.
    listing: `gin.config_str()` of what was parsed before.
    known_files: gin files that exist.
  """
  text = str(error)
  place = _PLACE.search(text)
  where = f"{place[1]}, line {place[2]}" if place else given
  if match := _NO_FILE.search(text):
    return UserError(
      f"{where}: the gin file {match[1]!r} does not exist"
      f"{nearest(match[1], known_files)}"
    )
  modules = st.imported_modules(listing)
  if match := _NOT_IMPORTED.search(text):
    return UserError(
      f"{where}: {match[1]!r} is not imported by any gin file"
      f"{nearest(match[1], modules)}"
    )
  if match := _NO_PARAMETER.search(text):
    names = _parameters(match[1], modules)
    return UserError(
      f"{where}: {match[1]} has no parameter {match[2]!r}"
      f"{nearest(match[2], names)}"
    )
  if match := _UNKNOWN.search(text):
    return UserError(
      f"{where}: there is no {match[1]!r} to bind"
      f"{_nearest_selector(match[1], modules)}"
    )
  reason = re.sub(r"\.? \(line \d+\)|\.$", "", text.splitlines()[0])
  return UserError(
    f"{where}: gin cannot read this ({reason});"
    " expected NAME = value or module.Name.parameter = value."
  )


def _nearest_selector(selector: str, modules: Mapping[str, str]) -> str:
  module, _, name = selector.rpartition(".")
  if not modules:
    return f"; {_IMPORTS_NEEDED}."
  if module not in modules:
    return nearest(selector, [f"{m}.{name}" for m in modules])
  members = vars(importlib.import_module(modules[module]))
  return nearest(
    selector, [f"{module}.{m}" for m in members if not m.startswith("_")]
  )


def of_build_error(error: Exception) -> UserError:
  """Turns an exception from building the job into one sentence."""
  first = str(error).splitlines()[0]
  called = _CALLED.search(str(error))
  if isinstance(error, UserError):
    return UserError(first)
  if called and (match := _MISSING.search(first)):
    return UserError(
      f"{called[1]} misses the binding of {match[1]}; add"
      f' --gin_param="{called[1]}.{match[1].strip(chr(39))} = ...".'
    )
  what = f"{called[1]} does not take its bindings" if called else "it failed"
  return UserError(
    f"the configuration cannot be built: {what} ({type(error).__name__}:"
    f" {first}); correct the value that it names."
  )


def check(listing: str, sources: Mapping[str, str]) -> None:
  """Checks a parsed configuration as a whole, before anything is built.

  Args:
    listing: `gin.config_str()`.
    sources: {left side: file and line, or command line} that set it.

  Raises:
    UserError: if a macro is set and never read or read and never set, a
      parameter does not exist, or one that is needed is not bound.
  """
  found = st.split_statements(listing)
  modules = st.imported_modules(listing)
  _check_macros(found, sources)
  for left in found:
    if not st.is_macro(left):
      _check_parameter(left, modules, sources)
  for scope, selector, called in sorted(st.references(found)):
    if called:
      _check_complete(scope, selector, modules, found)


def _check_macros(found, sources) -> None:
  defined = {left for left in found if st.is_macro(left)}
  read = st.macros_read(found)
  for macro in sorted(defined - set(read)):
    raise UserError(
      f"{sources.get(macro, macro)}: {macro} is set, but nothing reads"
      f" it{nearest(macro, read)}"
    )
  for macro in sorted(set(read) - defined):
    raise UserError(
      f"{macro} is not set, but {read[macro]} needs it; add"
      f' --gin_param="{macro} = ..." or a gin file that sets'
      f" it{nearest(macro, defined)}"
    )


def _check_parameter(left, modules, sources) -> None:
  _, selector, parameter = st.split_parameter(left)
  names = _parameters(selector, modules)
  if parameter not in names and not _is_grid(selector):
    raise UserError(
      f"{sources.get(left, left)}: {selector} has no parameter"
      f" {parameter!r}{nearest(parameter, names)}"
    )


def _is_grid(selector: str) -> bool:
  """Its axes are macros; what is none of them is seen when it is set."""
  return selector == "config.grid"


def _check_complete(scope, selector, modules, found) -> None:
  for name, parameter in _parameters(selector, modules).items():
    if parameter.default is not inspect.Parameter.empty:
      continue
    scoped = f"{scope}/{selector}.{name}" if scope else f"{selector}.{name}"
    if scoped not in found and f"{selector}.{name}" not in found:
      raise UserError(
        f"{scoped} is not bound, and it has no default; add"
        f' --gin_param="{scoped} = ..." or a gin file that binds it.'
      )


def _parameters(selector, modules) -> dict[str, inspect.Parameter]:
  module, *names = selector.split(".")
  if module not in modules:
    raise UserError(
      f"{selector} is bound, but no gin file imports it; {_IMPORTS_NEEDED}."
    )
  target = importlib.import_module(modules[module])
  for name in names:
    target = getattr(target, name)
  return {
    name: parameter
    for name, parameter in inspect.signature(target).parameters.items()
    if parameter.kind
    not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  }
