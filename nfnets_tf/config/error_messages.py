"""Messages about configurations: one sentence, with the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from nfnets_tf.errors import UserError

_MISSING = re.compile(r"missing \d+ required .*?: (.*)")
_CALLED = re.compile(r"In call to configurable '([^']+)'")


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns "; did you mean X?" for the closest name, "." without one."""
  close = difflib.get_close_matches(name, sorted(set(names)), n=1, cutoff=0.6)
  return f"; did you mean {close[0]!r}?" if close else "."


def describe_place(source: str | None, line: int | None) -> str:
  """Returns "file, line N", or the flag that a binding came from."""
  if source is None or source.startswith("--") or line is None:
    return source or "the configuration"
  return f"{source}, line {line}"


def explain_syntax_error(error: Exception, source: str) -> UserError:
  """Returns the error about text that gin's parser refused.

  Args:
    error: the parser's exception.
    source: the file or the flag that was being read.
  """
  reason = re.sub(r"\s+", " ", str(error.args[0])).rstrip(".")
  line = None
  if isinstance(error, SyntaxError):
    reason, line = re.sub(r"\s+", " ", error.msg).rstrip("."), error.lineno
  elif len(error.args) > 1 and isinstance(error.args[1], tuple):
    line = error.args[1][0]  # a tokenizer's error
  return UserError(
    f"{describe_place(source, line)}: gin cannot parse this ({reason});"
    " expected NAME = value or module.Name.parameter = value."
  )


def unknown_module(selector: str, modules: Iterable[str]) -> UserError:
  """Returns the error about a selector whose module is not imported."""
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
