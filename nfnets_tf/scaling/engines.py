"""What runs the commands of a sweep: this machine, or a cluster's engine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

from nfnets_tf.errors import Preempted, UserError, require_int

LOGGER = logging.getLogger("nfnets_tf")

_POLL_SECONDS = 0.2
_STORE_BYTES = 100 << 20  # nothing but exit codes goes through Ray


class LocalProcesses:
  """Runs commands as processes of this machine.

  Args:
    at_once: processes that run at the same time.
  """

  def __init__(self, *, at_once: int):
    require_int("engines.LocalProcesses.at_once", at_once, 1)
    self.at_once = at_once
    self._running: dict[str, subprocess.Popen] = {}

  def submit(self, name: str, command: Sequence[str], log: str) -> None:
    """Starts a command.

    Args:
      name: of it, for `wait`.
      command: program and arguments.
      log: local file to which its output is appended.
    """
    with open(log, "ab") as file:
      self._running[name] = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def wait(self, seconds: float) -> dict[str, int]:
    """Waits until a command ends, or not longer than `seconds`.

    Returns:
      {name: exit code} of those that have ended, negative for a signal's.
    """
    end = time.monotonic() + seconds
    while True:
      done = {n: p.poll() for n, p in self._running.items()}
      done = {n: code for n, code in done.items() if code is not None}
      if done or time.monotonic() >= end:
        for name in done:
          del self._running[name]
        return done
      time.sleep(_POLL_SECONDS)

  def stop(self) -> None:
    """Asks all that run to save and end, and waits until they have."""
    for process in self._running.values():
      process.send_signal(signal.SIGTERM)
    for process in self._running.values():
      process.wait()
    self._running.clear()


class Ray:
  """Hands commands to a Ray cluster, as tasks that need some of its machines.

  The package `ray` has to be installed on all of them, beside this one; the
  work directory has to be one that all of them see.

  Args:
    at_once: tasks that are handed out at the same time.
    address: of the cluster, "auto" for the one of this machine, or None to
      start one here.
    resources: that one command needs, {"CPU": 1, "GPU": 1, "TPU": 4}.
  """

  def __init__(self, *, at_once: int, address: str | None, resources: dict):
    require_int("engines.Ray.at_once", at_once, 1)
    self.at_once, self._address = at_once, address
    self._resources = dict(resources)
    self._running: dict[str, object] = {}
    self._task = None

  def submit(self, name: str, command: Sequence[str], log: str) -> None:
    """Hands out a command; see `LocalProcesses.submit`."""
    if self._task is None:
      self._task = self._connect()
    task = self._task.remote(list(command), log, os.getcwd())
    self._running[name] = task

  def wait(self, seconds: float) -> dict[str, int]:
    """Waits until a command ends; see `LocalProcesses.wait`."""
    if not self._running:
      time.sleep(seconds)
      return {}
    import ray

    names = {task: name for name, task in self._running.items()}
    ended, _ = ray.wait(list(names), timeout=seconds)
    done = {}
    for task in ended:
      try:
        done[names[task]] = ray.get(task)
      except ray.exceptions.RayError as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        LOGGER.warning("Ray lost %s: %s", names[task], told[-1])
        done[names[task]] = 1  # the machine is gone, and its lease runs out
      del self._running[names[task]]
    return done

  def stop(self) -> None:
    """Asks all tasks to save and end, and waits until they have."""
    if self._running:
      import ray

      for task in self._running.values():
        ray.cancel(task, force=False)
      ray.wait(list(self._running.values()), num_returns=len(self._running))
      self._running.clear()

  def _connect(self):
    try:
      import ray
    except ImportError as error:
      raise UserError(
        "engines.Ray needs the package ray, which is not installed; pip install"
        ' "nfnets_tf[ray]", or bind sweep.Sweep.engine to'
        " @engines.LocalProcesses()."
      ) from error
    if not ray.is_initialized():
      self._start(ray)
    there = ray.cluster_resources()
    if any(there.get(name, 0) < n for name, n in self._resources.items()):
      LOGGER.warning(
        "No machine of the Ray cluster has %s now; points wait until one has.",
        self._resources,
      )
    needs = dict(self._resources)
    return ray.remote(
      num_cpus=needs.pop("CPU", 1),
      num_gpus=needs.pop("GPU", 0),
      resources=needs,
      max_retries=0,
    )(_run_command)

  def _start(self, ray) -> None:
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if self._address is None:
      options.update(include_dashboard=False, object_store_memory=_STORE_BYTES)
    try:
      with _keeping_sigterm():
        ray.init(address=self._address or "local", **options)
    except (ConnectionError, ValueError) as error:
      raise UserError(
        f"engines.Ray.address = {self._address!r} cannot be used"
        f" ({str(error).splitlines()[0].rstrip('.')}); start a cluster by `ray"
        " start`, or bind it to None to start one here."
      ) from error


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[list]:
  """Turns a SIGTERM into `Preempted`, in the main thread.

  Yields:
    A list; once something is in it, as after the first, more of them change
    nothing, since what runs is being asked to save already.
  """
  asked = []

  def receive(number, frame):
    del number, frame
    if not asked:
      asked.append(True)
      raise Preempted

  if threading.current_thread() is not threading.main_thread():
    yield asked
    return
  before = signal.signal(signal.SIGTERM, receive)
  try:
    yield asked
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _keeping_sigterm():
  """Lets no library replace what this process does when asked to end."""
  before = signal.getsignal(signal.SIGTERM)
  try:
    yield
  finally:
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, before)


def _run_command(command: list[str], log: str, directory: str) -> int:
  """Runs a command within a Ray task; a cancelled one is asked to save."""
  log = os.path.join(directory, log)
  os.makedirs(os.path.dirname(log), exist_ok=True)
  with open(log, "ab") as file:
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      cwd=directory,
    )
    try:
      while process.poll() is None:
        time.sleep(_POLL_SECONDS)  # a cancelled task wakes up from no `wait`
      return process.returncode
    except BaseException:
      process.send_signal(signal.SIGTERM)
      process.wait()
      raise
