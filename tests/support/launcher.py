"""Starts launch/train.py in processes that have everything imported.

Importing takes longer than a small run: `Launcher` starts `fork_server.py` once
and forks it for each run.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--gin_file=gin/quickstart.gin", "--gin_file=tests/support/tiny.gin"]


class Launcher:
  """Starts launch/train.py, again and again, one process at a time.

  Args:
    environment: of the processes, in addition to this one's.
  """

  def __init__(self, **environment: str):
    self._process = subprocess.Popen(
      [sys.executable, str(pathlib.Path(__file__).with_name("fork_server.py"))],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )

  def start(
    self, *arguments, stdout="/dev/null", stderr=None, **environment
  ) -> int:
    """Starts a run; returns its process id.

    Args:
      arguments: flags of launch/train.py.
      stdout: path of a file that the output is appended to.
      stderr: the same; `stdout` if None.
      environment: of this run.
    """
    streams = [str(stdout), str(stderr or stdout)]
    line = json.dumps([list(map(str, arguments)), streams, environment])
    self._process.stdin.write(line + "\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline())

  def wait(self) -> int:
    """Returns the exit code of the run that was started last."""
    return int(self._process.stdout.readline())

  def run(self, *arguments, **options) -> int:
    """Starts a run and returns its exit code."""
    self.start(*arguments, **options)
    return self.wait()

  def launch(
    self, *arguments, folder: pathlib.Path, **environment
  ) -> subprocess.CompletedProcess:
    """Runs to the end; returns the exit code and what was printed.

    Args:
      arguments: flags of launch/train.py.
      folder: where the output is kept meanwhile.
      environment: of this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "stdout", folder / "stderr"]
    for path in paths:
      path.write_text("")
    code = self.run(*arguments, stdout=paths[0], stderr=paths[1], **environment)
    texts = [path.read_text() for path in paths]
    return subprocess.CompletedProcess(arguments, code, *texts)

  def close(self) -> None:
    """Ends the server; a run that is still in progress is not waited for."""
    self._process.kill()
    self._process.communicate()


@contextlib.contextmanager
def launchers():
  """Yields a function that makes a `Launcher`; all end with the context."""
  made: list[Launcher] = []

  def make(**environment: str) -> Launcher:
    made.append(Launcher(**environment))
    return made[-1]

  try:
    yield make
  finally:
    for launcher in made:
      launcher.close()


def is_alive(pid: int) -> bool:
  """Returns whether a process runs, as far as its parent knows."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def wait_until(
  condition: Callable[[], bool],
  *pids: int,
  seconds: float = 120.0,
  poll: float = 0.02,
) -> None:
  """Waits for a condition while processes run.

  Raises:
    AssertionError: if one of them ends first, or time runs out.
  """
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, f"not so after {seconds:g} seconds"
    assert all(map(is_alive, pids)), "a process ended before"
    time.sleep(poll)


def tf_configs(count: int = 2) -> list[str]:
  """Returns TF_CONFIG of each of some workers, at free ports of this host."""
  sockets = [socket.socket() for _ in range(count)]
  for bound in sockets:
    bound.bind(("localhost", 0))
  workers = [f"localhost:{bound.getsockname()[1]}" for bound in sockets]
  for bound in sockets:
    bound.close()
  return [
    json.dumps(
      {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
      }
    )
    for index in range(count)
  ]


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of a run's complete checkpoints, ascending."""
  paths = (workdir / "checkpoints").glob("ckpt-*.index")
  return sorted(int(path.stem.split("-")[1]) for path in paths)


def checkpoint_tensors(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns all tensors of a run's newest checkpoint."""
  newest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
  reader = tf.train.load_checkpoint(newest)
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
  }


def assert_same_tensors(
  got: dict[str, np.ndarray], want: dict[str, np.ndarray]
) -> None:
  """Compares two checkpoints bit for bit."""
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], name)
