"""Processes that take turns, so that a machine whose speed changes is fair.

A `Worker` starts an interpreter, possibly of another environment, that prepares
its work, says what it is, and does one piece of work for every line it reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable

_PIPE = "NFNETS_TF_BENCHMARK_PIPE"  # the environment has the number of its end


class Worker:
  """A process that works when it is called.

  Args:
    python: interpreter.
    module: run as `python -m MODULE FLAGS`; it calls `serve`.
    *flags: of the module.
    cores: that the process may use; None leaves them all to it.

  Attributes:
    facts: what the process said of itself.

  Raises:
    RuntimeError: if the process ends.
  """

  def __init__(
    self,
    python: str,
    module: str,
    *flags: str,
    cores: Iterable[int] | None = None,
  ):
    pinned = (
      [] if cores is None else ["taskset", "-c", ",".join(map(str, cores))]
    )
    # A pipe of its own: libraries write to standard output.
    answers, sent = os.pipe()
    self._process = subprocess.Popen(
      [*pinned, python, "-m", module, *flags],
      stdin=subprocess.PIPE,
      stdout=sys.stderr,
      text=True,
      pass_fds=[sent],
      env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", _PIPE: str(sent)},
    )
    os.close(sent)
    self._answers = os.fdopen(answers)
    self.facts = self._answer()

  def __call__(self, work: str = "") -> None:
    """Does one piece of work; `work` names it if the process knows several."""
    self.begin(work)
    self.end()

  def begin(self, work: str = "") -> None:
    """Starts a piece of work, so that several processes work at once."""
    self._process.stdin.write(f"{work}\n")
    self._process.stdin.flush()

  def end(self) -> None:
    """Waits for the end of the work that `begin` started."""
    self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
    self._answers.close()

  def _answer(self):
    line = self._answers.readline()
    if not line:
      code = self._process.wait()
      raise RuntimeError(f"{self._process.args} has ended with code {code}.")
    return json.loads(line)


def serve(work: dict[str, Callable[[], object]], facts: object) -> None:
  """Does the work that each line of standard input names; see `Worker`.

  Args:
    work: {name: function}; an empty line stands for the first.
    facts: sent first; anything that JSON holds.
  """
  first = next(iter(work))
  with os.fdopen(int(os.environ[_PIPE]), "w") as pipe:
    print(json.dumps(facts), file=pipe, flush=True)
    for line in sys.stdin:
      work[line.strip() or first]()
      print("{}", file=pipe, flush=True)
