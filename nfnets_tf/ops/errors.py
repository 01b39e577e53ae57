"""The one exception that a mistake of the user ends in, and who raises it."""


class UserError(ValueError):
  """Something the user gave cannot be used.

  The message is one sentence that says what was received, what was expected
  and how to mend it; the launcher prints it without a traceback and ends with
  exit code 2.
  """


class RunFault(Exception):
  """Something around a run has failed, such as a disk or another machine.

  The message is one sentence that says what, and how to mend it; the launcher
  prints it and ends with exit code 1, and the same command goes on.
  """


class NothingToDo(Exception):
  """Another process does what this one was started for; exit code 0."""


class Preempted(Exception):
  """The process was asked to end before its work was done; all is saved."""


def require_share(name: str, value: float) -> None:
  """Raises a UserError unless a binding's value is in [0, 1]."""
  if not isinstance(value, (int, float)) or not 0 <= value <= 1:
    raise UserError(
      f"{name} = {value!r} cannot be used; bind it to a share from 0 to 1."
    )


def require_whole(name: str, value: int, least: int) -> None:
  """Raises a UserError unless a binding's value is an integer >= `least`."""
  if not isinstance(value, int) or value < least:
    raise UserError(
      f"{name} = {value!r} cannot be used; bind it to a whole number of at"
      f" least {least}."
    )
