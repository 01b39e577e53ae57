"""The interface between the launcher and the jobs that a gin file can name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, TextIO


@dataclasses.dataclass(frozen=True)
class RunContext:
  """Context of a job, from the launcher.

  Attributes:
    workdir: directory of the job's files, local or gs://.
    config_text: the resolved configuration, kept in the work directory.
    terminal: where a progress bar can be drawn; None writes log lines.
    on_start: called once all input has been accepted and work begins.
  """

  workdir: str
  config_text: str
  terminal: TextIO | None = None
  on_start: Callable[[], None] = lambda: None


class Job(Protocol):
  """Interface of `config.Launch.job`."""

  def plan(self) -> str:
    """Describes what would run; allocates and writes nothing."""

  def run(self, context: RunContext) -> str:
    """Runs the job, or resumes an unfinished earlier call.

    Returns:
      The summary to print.

    Raises:
      UserError: if the input or the configuration is invalid.
    """
