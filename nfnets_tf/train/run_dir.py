"""The work directory of a run: its files, and the lock that guards it.

The lock needs only a guarantee of all file systems of `tf.io.gfile`: a written
file is visible, whole, to any process that lists the directory later (local
disks, NFS, `gs://`, `ram://`). An atomic create, or a rename that does not
overwrite, is not available on all of them. So each process first writes a
lease file under a unique name and *then* lists the directory; it holds the lock
if it sees no other live lease, and withdraws otherwise. Of two processes, the
one that lists last sees the file of the other: both may withdraw and retry, but
they never both hold the lock. While it is held, a heartbeat renews the lease.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import logging
import os
import pathlib
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import tensorflow as tf

from nfnets_tf.errors import RunError, UserError
from nfnets_tf.fileio import (
  read_bytes,
  read_json,
  read_run_data,
  refuse_pattern,
  report_write_errors,
  write_atomically,
)

LOGGER = logging.getLogger("nfnets_tf")

LEASE_SECONDS = 60.0
_HEARTBEATS_PER_LEASE = 4
_MAX_BACKOFF_SECONDS = 0.5
_PREFIX, _SUFFIX = "lease-", ".json"
_HELD: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
  "run directories locked by this thread", default=frozenset()
)


class RunDir:
  """Paths of one run's files; reads and writes the small ones.

  Args:
    root: directory of the run, local or gs://; created by the first write.
  """

  def __init__(self, root: str):
    self.root = root
    self.config = os.path.join(root, "config.gin")
    self.metrics = os.path.join(root, "metrics.jsonl")
    self.curves = os.path.join(root, "curves.png")
    self.checkpoints = os.path.join(root, "checkpoints")
    self.saved_models = os.path.join(root, "saved_model")
    self.tensorboard = os.path.join(root, "tensorboard")
    self.sample = os.path.join(root, "heldout_sample.npy")
    self.report = os.path.join(root, "report")
    self.rollbacks = os.path.join(root, "rollbacks.json")
    self.not_finite = os.path.join(root, "not_finite.tsv")
    self.result = os.path.join(root, "result.json")

  def check_path(self) -> None:
    """Checks that TensorFlow can read checkpoints in this directory.

    Raises:
      UserError: if the path has characters that it takes for a pattern.
    """
    refuse_pattern("--workdir", self.root)

  def check_writable(self) -> None:
    """Checks that a local directory exists or can be created, and is writable.

    Raises:
      UserError: if it is not.
    """
    self.check_path()
    if "://" in self.root:
      return
    path = os.path.abspath(self.root)
    while not os.path.lexists(path):
      path = os.path.dirname(path)
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
      state = "is not writable" if os.path.isdir(path) else "is not a directory"
      raise UserError(
        f"--workdir={self.root} is invalid because {path!r} {state}; give a"
        " writable directory."
      )

  def check_layout(self) -> None:
    """Checks that the run in this directory, if any, has today's layout.

    Raises:
      UserError: if an earlier release of this package began it.
    """
    read_run_data(self.root)

  def write_config(self, text: str) -> None:
    """Writes config.gin, and keeps a different earlier one as config.N.gin."""
    with report_write_errors(self.root):
      tf.io.gfile.makedirs(self.root)
    earlier = self.read_config()
    if earlier == text:
      return
    if earlier is not None:
      number = 1
      while tf.io.gfile.exists(older := f"{self.config[:-4]}.{number}.gin"):
        number += 1
      with report_write_errors(older):
        tf.io.gfile.copy(self.config, older)
    write_atomically(self.config, text)

  def read_config(self) -> str | None:
    """Returns config.gin, None for a run that was started from Python."""
    if not tf.io.gfile.exists(self.config):
      return None
    return read_bytes(self.config).decode()

  def read_num_data_streams(self) -> int | None:
    """Returns the number of data streams of the run, None before its start."""
    return read_run_data(self.root).get("num_data_streams")

  def read_result(self) -> dict | None:
    """Returns the result of a finished run, None for an unfinished one."""
    is_finished = tf.io.gfile.exists(self.result)
    return read_json(self.result) if is_finished else None

  def write_result(self, result: dict) -> None:
    """Writes result.json, which marks the run as finished."""
    write_atomically(self.result, json.dumps(result, indent=1) + "\n")


class RunLocked(UserError):
  """Another process is running in the work directory."""


@dataclasses.dataclass(frozen=True)
class Lease:
  """The content of one lease file.

  Attributes:
    host: name of the machine.
    process: its process id there.
    machine: identity of the boot and process namespace in which that id is
      valid, so that processes that share it can check on each other.
    expires: seconds since the epoch, by the clock of the holder.
  """

  host: str
  process: int
  machine: str
  expires: float

  def is_local(self) -> bool:
    """Returns whether the holder's process can be seen from this one."""
    return self.machine == _MACHINE

  def is_live(self, now: float) -> bool:
    """Returns whether the lease still protects the work directory."""
    if self.is_local() and not _is_alive(self.process):
      return False
    return now < self.expires


class RunLock:
  """The lock of a work directory: a lease file with a heartbeat.

  `TrainJob.run` holds it on the chief around everything that reads or writes
  the work directory:

    with RunLock(context.workdir).hold():
      ...

  A sweep holds it around the job of a trial; `hold` may be nested in a thread.
  A killed process needs no cleanup: its lease is void at once on the same
  machine and expires elsewhere. A process that was suspended for longer than
  its lease exits if another one has taken over.

  Args:
    root: the work directory.
    lease_seconds: after which a lease that was not renewed expires. The clocks
      of all machines must agree to a small fraction of it.
    clock: returns seconds since the epoch.
    sleep: waits for some seconds.
    on_lost: called when another process took over; exits by default.
  """

  def __init__(
    self,
    root: str,
    *,
    lease_seconds: float = LEASE_SECONDS,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    on_lost: Callable[[str], None] | None = None,
  ):
    self._root, self._lease_seconds = root, lease_seconds
    self._clock, self._sleep = clock, sleep
    self._on_lost = on_lost or _exit_process
    self._host, self._expires = socket.gethostname(), -float("inf")
    token = uuid.uuid4().hex[:8]
    name = f"{_PREFIX}{self._host}-{os.getpid()}-{token}{_SUFFIX}"
    self._path = os.path.join(root, name)

  def holder(self) -> Lease | None:
    """Returns the live lease of another process or instance, if any."""
    now = self._clock()  # before reading, or a renewal in between is missed
    leases = self._other_leases().values()
    return next((lease for lease in leases if lease.is_live(now)), None)

  def acquire(self) -> None:
    """Acquires the lock.

    A holder on this machine is known to be alive. One on another machine may
    have been killed, so this waits until its lease is renewed or expires.

    Raises:
      RunLocked: if another process holds the lock.
    """
    with report_write_errors(self._root):
      tf.io.gfile.makedirs(self._root)
    while True:
      self._wait_for_holder()
      self._write()
      now = self._clock()
      leases = self._other_leases()
      if not any(lease.is_live(now) for lease in leases.values()):
        break
      self.release()
      # Of those that started at the same moment, one has to be first.
      self._sleep(random.uniform(0, _MAX_BACKOFF_SECONDS))
    # Only now: an expired holder that wakes up renews its file, and whichever
    # of the two lists last must see the other.
    for path in leases:
      _remove(path)

  def renew(self) -> None:
    """Extends the lease; calls `on_lost` if another process took over."""
    # A process takes over before the lease expires only if its clock is ahead;
    # it removes the file then.
    previous, exists = self._expires, tf.io.gfile.exists(self._path)
    self._write()
    late = self._clock() >= previous
    # This process has written its file, so it lists last.
    if (late or not exists) and self.holder() is not None:
      self.release()
      self._on_lost(self._root)

  def release(self) -> None:
    """Releases the lock; does nothing if it is not held."""
    _remove(self._path)

  @contextlib.contextmanager
  def hold(self) -> Iterator[None]:
    """Acquires the lock for the duration of a `with`, renewed by a thread."""
    root = self._root.rstrip("/")
    if root in _HELD.get():
      yield
      return
    self.acquire()
    ended = threading.Event()
    thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
    thread.start()
    token = _HELD.set(_HELD.get() | {root})
    try:
      yield
    finally:
      _HELD.reset(token)
      ended.set()
      thread.join()
      self.release()

  def _beat(self, ended: threading.Event) -> None:
    while not ended.wait(self._lease_seconds / _HEARTBEATS_PER_LEASE):
      # A lease outlives a few failed writes.
      with contextlib.suppress(RunError, tf.errors.OpError):
        self.renew()

  def _wait_for_holder(self) -> None:
    first = holder = self.holder()
    while holder is not None:
      if holder.is_local() or holder != first:
        raise RunLocked(
          f"{self._root!r} is in use by process {holder.process} on host"
          f" {holder.host!r}; wait for that process or stop it, or use another"
          " --workdir."
        )
      self._sleep(self._lease_seconds / _HEARTBEATS_PER_LEASE / 4)
      holder = self.holder()

  def _write(self) -> None:
    expires = self._clock() + self._lease_seconds
    lease = Lease(self._host, os.getpid(), _MACHINE, expires)
    write_atomically(self._path, json.dumps(dataclasses.asdict(lease)))
    self._expires = expires

  def _other_leases(self) -> dict[str, Lease]:
    try:
      names = tf.io.gfile.listdir(self._root)
    except tf.errors.NotFoundError:
      return {}
    leases = {}
    for name in sorted(names):
      path = os.path.join(self._root, name)
      is_lease = name.startswith(_PREFIX) and name.endswith(_SUFFIX)
      if is_lease and path != self._path:
        with contextlib.suppress(tf.errors.NotFoundError):  # released by now
          leases[path] = _read_lease(path, self._lease_seconds)
    return leases


def _read_lease(path: str, lease_seconds: float) -> Lease:
  try:
    content = json.loads(read_bytes(path))
    types = {"host": str, "process": int, "machine": str, "expires": float}
    return Lease(**{name: kind(content[name]) for name, kind in types.items()})
  except (ValueError, TypeError, KeyError):
    # Written partially by a machine that crashed; expires like any other.
    written = tf.io.gfile.stat(path).mtime_nsec / 1e9
    return Lease("unknown", 0, "", written + lease_seconds)


def _machine() -> str:
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):  # without /proc, the host name must do
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
    parts += [boot_id.strip(), os.readlink("/proc/self/ns/pid")]
  return " ".join(parts)


_MACHINE = _machine()


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except OSError as error:
    return isinstance(error, PermissionError)  # it runs as another user
  return True


def _remove(path: str) -> None:
  with contextlib.suppress(tf.errors.OpError):  # else it expires
    tf.io.gfile.remove(path)


def _exit_process(root: str) -> None:
  LOGGER.error("Exiting: the process stalled and lost the lock of %s.", root)
  sys.stderr.flush()
  os._exit(1)
