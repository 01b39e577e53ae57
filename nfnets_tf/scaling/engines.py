"""Engines run the processes of a sweep: on this machine, or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.ranges import accepts, integer, mapping, number

LOGGER = logging.getLogger("nfnets_tf")

_POLL_SECONDS = 0.2
_STORE_BYTES = 100 << 20  # nothing but exit codes goes through Ray


class Engine(Protocol):
  """Runs commands, up to `at_once` at the same time."""

  at_once: int

  def submit(self, name: str, command: Sequence[str], log: str) -> None:
    """Starts a command, whose output is appended to the local file `log`."""

  def wait(self, seconds: float) -> dict[str, int]:
    """Waits up to `seconds` for a command to end.

    Returns:
      {name: exit code} of those that have ended, negative after a signal.
    """

  def stop(self) -> None:
    """Terminates all commands (SIGTERM) and waits until they have ended."""


@accepts(at_once=integer(1))
class LocalProcesses:
  """Runs commands as processes of this machine.

  Args:
    at_once: number of processes at the same time.
  """

  def __init__(self, *, at_once: int):
    self.at_once = at_once
    self._running: dict[str, subprocess.Popen] = {}

  def submit(self, name: str, command: Sequence[str], log: str) -> None:
    """Starts a command; see `Engine`."""
    self._running[name] = _start(command, log)

  def wait(self, seconds: float) -> dict[str, int]:
    """Waits for a command to end; see `Engine`."""
    deadline = time.monotonic() + seconds
    while True:
      codes = {name: p.poll() for name, p in self._running.items()}
      ended = {name: code for name, code in codes.items() if code is not None}
      if ended or time.monotonic() >= deadline:
        for name in ended:
          del self._running[name]
        return ended
      time.sleep(min(_POLL_SECONDS, seconds))

  def stop(self) -> None:
    """Terminates all commands; see `Engine`."""
    for process in self._running.values():
      process.terminate()
    for process in self._running.values():
      process.wait()
    self._running.clear()


@accepts(at_once=integer(1), resources=mapping(number(0)))
class Ray:
  """Runs commands as tasks of a Ray cluster.

  The package `ray` and the same Python environment are needed on all machines,
  and a work directory that all of them can access.

  Args:
    at_once: number of tasks submitted at the same time.
    address: of the cluster, "auto" for the one of this machine, or None to
      start one here.
    resources: of one task, such as {"CPU": 1, "GPU": 1, "TPU": 4}.
  """

  def __init__(
    self, *, at_once: int, address: str | None, resources: Mapping[str, float]
  ):
    self.at_once, self._address = at_once, address
    self._resources = dict(resources)
    self._running: dict[str, object] = {}
    self._task = None

  def submit(self, name: str, command: Sequence[str], log: str) -> None:
    """Submits a task; see `Engine`."""
    if self._task is None:
      self._task = self._connect()
    task = self._task.remote(list(command), log, os.getcwd())
    self._running[name] = task

  def wait(self, seconds: float) -> dict[str, int]:
    """Waits for a task to end; see `Engine`."""
    if not self._running:
      time.sleep(seconds)
      return {}
    import ray

    names = {task: name for name, task in self._running.items()}
    tasks, _ = ray.wait(list(names), timeout=seconds)
    ended = {}
    for task in tasks:
      name = names[task]
      try:
        ended[name] = ray.get(task)
      except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        LOGGER.warning("Ray lost %s: %s", name, lines[-1])
        ended[name] = 1  # if its machine is gone, its lock expires
      del self._running[name]
    return ended

  def stop(self) -> None:
    """Cancels all tasks; see `Engine`."""
    if self._running:
      import ray

      tasks = list(self._running.values())
      for task in tasks:
        ray.cancel(task, force=False)
      ray.wait(tasks, num_returns=len(tasks))
      self._running.clear()

  def _connect(self):
    try:
      import ray
    except ImportError as error:
      raise UserError(
        'engines.Ray needs the package ray; run pip install "nfnets_tf[ray]",'
        " or bind sweep.Sweep.engine to @engines.LocalProcesses()."
      ) from error
    if not ray.is_initialized():
      self._start_ray(ray)
    available = ray.cluster_resources()
    if any(available.get(n, 0) < least for n, least in self._resources.items()):
      LOGGER.warning(
        "No machine of the Ray cluster has %s yet; trials wait for one.",
        self._resources,
      )
    needs = dict(self._resources)
    return ray.remote(
      num_cpus=needs.pop("CPU", 1),
      num_gpus=needs.pop("GPU", 0),
      resources=needs,
      max_retries=0,
    )(_run_task)

  def _start_ray(self, ray) -> None:
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if self._address is None:
      options.update(include_dashboard=False, object_store_memory=_STORE_BYTES)
    handler = signal.getsignal(signal.SIGTERM)
    try:
      ray.init(address=self._address or "local", **options)
    except (ConnectionError, ValueError) as error:
      raise UserError(
        f"engines.Ray.address = {self._address!r} is not a running cluster"
        f" ({str(error).splitlines()[0].rstrip('.')}); run `ray start`, or bind"
        " it to None to start a cluster here."
      ) from error
    finally:
      if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray replaces it


def _start(command: Sequence[str], log: str, **options) -> subprocess.Popen:
  with open(log, "ab") as file:
    return subprocess.Popen(
      list(command),
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      **options,
    )


def _run_task(command: list[str], log: str, directory: str) -> int:
  """Runs a command within a Ray task; canceling terminates it gracefully."""
  # Ray cancels by SIGINT, which what a shell starts in the background ignores.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  log = os.path.join(directory, log)
  os.makedirs(os.path.dirname(log), exist_ok=True)
  process = _start(command, log, cwd=directory)
  try:
    while process.poll() is None:
      time.sleep(_POLL_SECONDS)  # a canceled task never returns from `wait`
    return process.returncode
  except BaseException:
    process.terminate()
    process.wait()
    raise


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[list]:
  """Raises `Preempted` on SIGTERM, in the main thread.

  Yields:
    A list; once it holds anything, as after the first signal, further signals
    are ignored, since the processes are terminating already.
  """
  terminating = []

  def receive(number, frame):
    del number, frame
    if not terminating:
      terminating.append(True)
      raise Preempted

  if threading.current_thread() is not threading.main_thread():
    yield terminating
    return
  handler = signal.signal(signal.SIGTERM, receive)
  try:
    yield terminating
  finally:
    signal.signal(signal.SIGTERM, handler)
