"""What ends a run in one sentence, and who raises it."""

import re

# TensorFlow says where in its graph something happened around what happened.
_NODE = re.compile(r"\{\{.*?\}\}|\[Op:\w+\].*")
_WHERE = re.compile(
  r"Graph execution error|Detected at node|File \"|^\^|^\S+\($"
)
_REASON = re.compile(
  r"Collective ops is aborted by.*|\S*[:;] ?No such file.*|OOM when [^;]*"
)


class UserError(ValueError):
  """Something the user gave cannot be used.

  The message is one sentence that says what was received, what was expected
  and how to mend it; the launcher prints it without a traceback and ends with
  exit code 2.
  """


class Diverged(UserError):
  """Training has left the finite numbers, and going back did not help."""


class RunError(Exception):
  """Something around a run has failed, such as a disk or another machine.

  The message is one sentence that says what, and how to mend it; the launcher
  prints it and ends with exit code 1, and the same command goes on.
  """


class NothingToDo(Exception):
  """Another process does what this one was started for; exit code 0."""


class Preempted(Exception):
  """The process was asked to end before its work was done; all is saved."""


def plain_message(error: Exception) -> str:
  """Returns the line of an error's many that says what happened."""
  text = getattr(error, "message", None) or getattr(error, "strerror", None)
  lines = [_NODE.sub("", x).strip() for x in (text or str(error)).splitlines()]
  for line in lines:
    if match := _REASON.search(line):
      return match[0]
  told = [line for line in lines if line and not _WHERE.match(line)]
  return told[0] if told else type(error).__name__


def require(condition: bool, name: str, value: object, expected: str) -> None:
  """Raises a UserError about a parameter unless a condition holds.

  Args:
    condition: whether the value can be used.
    name: of the parameter, as a gin file binds it.
    value: that was given.
    expected: what the parameter accepts, such as "a number >= 0".
  """
  if not condition:
    raise UserError(f"{name} = {value!r} is invalid; expected {expected}.")


def require_fraction(name: str, value: float) -> None:
  """Raises a UserError unless a parameter is a number in [0, 1]."""
  valid = isinstance(value, (int, float)) and 0 <= value <= 1
  require(valid, name, value, "a number from 0 to 1")


def require_int(name: str, value: int, minimum: int) -> None:
  """Raises a UserError unless a parameter is an integer >= `minimum`."""
  valid = isinstance(value, int) and value >= minimum
  require(valid, name, value, f"an integer >= {minimum}")
