"""What tests of whole runs share."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FORKS = pathlib.Path(__file__).with_name("forks.py")


class Launcher:
  """Starts launch/train.py, again and again, one process at a time."""

  def __init__(self, **environment):
    self._process = subprocess.Popen(
      [sys.executable, str(FORKS)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )

  def start(self, *arguments, screen="/dev/null", **environment):
    """Starts a run; returns its process id."""
    line = json.dumps([list(map(str, arguments)), str(screen), environment])
    self._process.stdin.write(line + "\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline())

  def wait(self):
    """Returns the exit code of what was started last."""
    return int(self._process.stdout.readline())

  def run(self, *arguments, **options):
    """Starts a run and returns its exit code."""
    self.start(*arguments, **options)
    return self.wait()

  def close(self):
    """Ends; what still runs is killed."""
    self._process.kill()
    self._process.communicate()


@pytest.fixture
def launchers():
  """Makes any number of `Launcher`s, which end with the test."""
  made = []

  def make(**environment):
    made.append(Launcher(**environment))
    return made[-1]

  yield make
  for one in made:
    one.close()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """Binding of a folder that the first run writes the digits to."""
  path = tmp_path_factory.mktemp("cache") / "digits"
  return f"--gin_param=DATA_DIR = {str(path)!r}"


@pytest.fixture(scope="session")
def tf_configs():
  """Returns a function that makes TF_CONFIG of workers at free ports."""

  def make(count=2):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
      one.bind(("localhost", 0))
    workers = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
      one.close()
    cluster = {"worker": workers}
    return [
      json.dumps(
        {"cluster": cluster, "task": {"type": "worker", "index": index}}
      )
      for index in range(count)
    ]

  return make
