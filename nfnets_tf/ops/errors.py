"""The one exception that a mistake of the user ends in."""


class UserError(ValueError):
  """Something the user gave cannot be used.

  The message is one sentence that says what was received, what was expected
  and how to mend it; the launcher prints it without a traceback and ends with
  exit code 2.
  """
