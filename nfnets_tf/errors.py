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


def require_fraction(name: str, value: float) -> None:
  """Raises a UserError unless a binding's value is in [0, 1]."""
  if not isinstance(value, (int, float)) or not 0 <= value <= 1:
    raise UserError(
      f"{name} = {value!r} cannot be used; bind it to a share from 0 to 1."
    )


def require_int(name: str, value: int, least: int) -> None:
  """Raises a UserError unless a binding's value is an integer >= `least`."""
  if not isinstance(value, int) or value < least:
    raise UserError(
      f"{name} = {value!r} cannot be used; bind it to a whole number of at"
      f" least {least}."
    )
