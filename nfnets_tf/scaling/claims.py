"""Who works at what, on any file system that shows new files to all.

A claim is a file of the owner's own below the folder of what is claimed.
Whoever finds another live claim beside his own withdraws, so that of two who
come at the same time none or one keeps it, never both.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.errors import RunError
from nfnets_tf.fileio import write_atomically

LOGGER = logging.getLogger("nfnets_tf")

_HEARTBEATS = 4  # in the time of a lease
_TRIES, _PAUSE_SECONDS = 3, 0.5


class Claims:
  """Claims of one process on the points of a sweep.

  Args:
    directory: of all claims, shared by all who work.
    lease_seconds: after which a claim that is not renewed is nobody's. The
      clocks of those who share a sweep must agree far better than that.
  """

  def __init__(self, directory: str, *, lease_seconds: float):
    self._directory, self._lease = directory, lease_seconds
    host, mark = socket.gethostname(), uuid.uuid4().hex[:8]
    self._owner = f"{host}-{os.getpid()}-{mark}"

  def names(self) -> list[str]:
    """Returns the names of all that is claimed."""
    if not tf.io.gfile.exists(self._directory):
      return []
    found = sorted(tf.io.gfile.listdir(self._directory))
    return [name for name in map(_plain, found) if self._live(name)]

  def owner(self, name: str) -> str | None:
    """Returns who works at something, as HOST-PROCESS-ID, None if nobody."""
    return next(iter(self._live(name)), None)

  def take(self, name: str) -> bool:
    """Claims something; returns whether it is this process's now."""
    for _ in range(_TRIES):
      if self._live(name):
        return False
      self._remove_dead(name)
      self._renew(name)
      if self._live(name) == [self._owner]:
        return True
      self.release(name)
      # Of those who came at the same moment, one shall be the first.
      time.sleep(random.uniform(0, _PAUSE_SECONDS))
    return False

  def release(self, name: str) -> None:
    """Gives a claim back."""
    _remove(self._path(name, self._owner))

  @contextlib.contextmanager
  def held(self, name: str) -> Iterator[None]:
    """Keeps a claim alive for the time of a `with`, then gives it back.

    If it was lost, since this process stood still for longer than a lease, the
    process ends at once: another one works in the same folder by now.
    """
    ended = threading.Event()

    def beat():
      while not ended.wait(self._lease / _HEARTBEATS):
        # The lease outlives a bad moment of the file system.
        with contextlib.suppress(RunError, tf.errors.OpError):
          if self.owner(name) != self._owner:
            _end(name)
          self._renew(name)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()
      self.release(name)

  def _path(self, name: str, owner: str) -> str:
    return os.path.join(self._directory, name, owner)

  def _renew(self, name: str) -> None:
    tf.io.gfile.makedirs(os.path.join(self._directory, name))
    content = {
      "machine": _MACHINE,
      "process": os.getpid(),
      "expires": time.time() + self._lease,
    }
    write_atomically(self._path(name, self._owner), json.dumps(content))

  def _owners(self, name: str) -> list[str]:
    folder = os.path.join(self._directory, name)
    if not tf.io.gfile.exists(folder):
      return []
    return [
      owner
      for owner in sorted(tf.io.gfile.listdir(folder))
      if not owner.endswith(".partial") and owner[0] != "."  # .nfs of open ones
    ]

  def _live(self, name: str) -> list[str]:
    """Returns the owners of claims that hold."""
    return [owner for owner in self._owners(name) if self._holds(name, owner)]

  def _remove_dead(self, name: str) -> None:
    """Removes claims that do not hold.

    Only who takes over does so: an owner who stood still goes on, if nobody
    has taken over.
    """
    for owner in self._owners(name):
      if not self._holds(name, owner):
        _remove(self._path(name, owner))

  def _holds(self, name: str, owner: str) -> bool:
    if owner == self._owner:
      return True
    path = self._path(name, owner)
    try:
      machine, process, expires = _read(path, self._lease)
    except tf.errors.NotFoundError:
      return False  # given back in this moment
    if machine == _MACHINE and not _is_alive(process):
      return False
    return time.time() < expires


def _machine() -> str:
  """Returns what processes share that can see each other live or die."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):  # where there is no /proc
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    parts += [boot, os.readlink("/proc/self/ns/pid")]
  return " ".join(parts)


_MACHINE = _machine()


def _read(path: str, lease: float) -> tuple[str, int, float]:
  """Returns (machine, process, when it expires) of a claim."""
  with tf.io.gfile.GFile(path, "rb") as file:
    # Without a number, it asks how long the file is that is there by now.
    content = file.read(1 << 20)
  try:
    claim = json.loads(content)
    return str(claim["machine"]), int(claim["process"]), float(claim["expires"])
  except (ValueError, TypeError, KeyError):
    # Torn, as when a machine breaks down; it ends as any other.
    return "", 0, tf.io.gfile.stat(path).mtime_nsec / 1e9 + lease


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # another user's
  return True


def _plain(name: str) -> str:
  return name.rstrip("/")  # folders of an object store end in one


def _remove(path: str) -> None:
  with contextlib.suppress(tf.errors.NotFoundError):
    tf.io.gfile.remove(path)


def _end(name: str) -> None:
  LOGGER.error(
    "The lease of %s ran out while this process stood still, and another one"
    " may work at it; ending. Raise sweep.Sweep.lease_seconds if that happens"
    " again.",
    name,
  )
  sys.stderr.flush()
  os._exit(1)
