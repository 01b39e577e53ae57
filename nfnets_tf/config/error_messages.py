"""Messages about configurations: one sentence, with the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from nfnets_tf.config.syntax_advice import Advice, as_flag
from nfnets_tf.errors import UserError

_MISSING = re.compile(r"missing \d+ required .*?: (.*)")
_CALLED = re.compile(r"In call to configurable '([^']+)'")


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns "; did you mean X?" for the closest name, "." without one."""
  folded = {known.casefold(): known for known in sorted(set(names))}
  close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
  return f"; did you mean {folded[close[0]]!r}?" if close else "."


def describe_place(source: str | None, line: int | None) -> str:
  """Returns "file, line N", or the flag that a binding came from."""
  if source is None or source.startswith("--") or line is None:
    return source or "the configuration"
  return f"{source}, line {line}"


def syntax_error_line(error: Exception) -> int:
  """Returns the number of the line that gin's parser refused, from 1."""
  if isinstance(error, SyntaxError):
    return error.lineno or 1
  if len(error.args) > 1 and isinstance(error.args[1], tuple):
    return error.args[1][0]  # a tokenizer's error
  return 1


def explain_syntax_error(
  place: str, line: str, advice: Advice | None
) -> UserError:
  """Returns the error about text that gin's parser refused.

  Args:
    place: the line of a file, or the flag.
    line: the text that was refused.
    advice: how it can be mended, or None.
  """
  is_flag = place.startswith("--")
  refused = f"{place}: gin cannot parse this"
  if not is_flag:
    refused += f" {line.strip()!r}"
  if advice is not None:
    problem, statement = advice
    if is_flag and problem.endswith("wants quotes"):
      problem += ", and others around them for the shell"
    remedy = as_flag(statement) if is_flag else statement
    return UserError(f"{refused}: {problem}; write {remedy}")
  return UserError(
    f"{refused}; expected NAME = value or module.Name.parameter = value, where"
    " a value is a number, a 'string', True, False, None, a list of values,"
    " %MACRO or @module.Name."
  )


def unknown_module(
  selector: str, modules: Iterable[str], module: str | None
) -> UserError:
  """Returns the error about a selector whose module is not imported.

  Args:
    selector: such as "tfrecords.Fields".
    modules: names that are imported.
    module: of the package, which the selector probably means, or None.
  """
  alias, _, rest = selector.partition(".")
  modules = list(modules)
  if not modules:
    return UserError(
      f"there is no {selector!r} to bind; begin the file with 'from __gin__"
      " import dynamic_registration' and import the module."
    )
  if not rest:
    hint = nearest(alias, modules)
    return UserError(f"no gin file imports {selector!r}{hint}")
  if module:
    parent, _, name = module.rpartition(".")
    return UserError(
      f"no gin file imports the module of {selector!r}; add the line 'from"
      f" {parent} import {name}'."
    )
  hint = nearest(selector, [f"{module}.{rest}" for module in modules])
  return UserError(f"no gin file imports the module of {selector!r}{hint}")


def explain_build_error(error: Exception) -> UserError:
  """Returns the error about a configuration that failed to build.

  Args:
    error: what a constructor raised; gin appends the place of the call.
  """
  first = str(error).splitlines()[0]
  called = _CALLED.search(str(error))
  if isinstance(error, UserError):
    return UserError(first)
  if called and (match := _MISSING.search(first)):
    parameter = match[1].strip("'")
    return UserError(
      f"missing binding for {called[1]}.{parameter}; add"
      f' --gin_param="{called[1]}.{parameter} = ...".'
    )
  subject = f"{called[1]} rejected its arguments" if called else "it failed"
  return UserError(
    f"the configuration cannot be built: {subject} ({type(error).__name__}:"
    f" {first}); correct the value that it names."
  )


def describe_changes(
  changes: Iterable[tuple[str, str | None, str | None]],
) -> str:
  """Returns the first changes as text.

  Args:
    changes: (name, value before, value now), None where it is not set.
  """
  changes = list(changes)
  shown = "; ".join(
    f"{name} was {before or 'not set'}, is {now or 'not set'}"
    for name, before, now in changes[:5]
  )
  more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
  return shown + more
