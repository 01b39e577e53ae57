"""Runs a benchmark as a command."""

from collections.abc import Callable

from absl import app, logging


def run(main: Callable[[], None]) -> None:
  """Parses the command's flags and calls `main`."""

  def quiet(_):
    logging.set_verbosity(logging.WARNING)  # exports log every function
    main()

  app.run(quiet)
