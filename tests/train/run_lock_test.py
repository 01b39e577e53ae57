"""The lock of a work directory, between instances, threads and processes."""

import json
import multiprocessing
import os
import random
import signal
import socket
import threading
import time

import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import write_atomically
from nfnets_tf.train import run_dir
from nfnets_tf.train.run_dir import RunLock

# Forked from a server that has imported TensorFlow already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["nfnets_tf.train.run_dir"])


class Clock:
  """A clock that advances only when set, or during a sleep."""

  def __init__(self):
    self.now = 1_000_000.0
    self.on_sleep = lambda: None

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    self.on_sleep()


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture(params=["local", "ram"])
def root(request, tmp_path):
  return f"ram:/{tmp_path}" if request.param == "ram" else str(tmp_path / "run")


@pytest.fixture
def make_lock(root, clock):
  def make(**options):
    defaults = {"lease_seconds": 60, "clock": clock, "sleep": clock.sleep}
    return RunLock(root, **{**defaults, "on_lost": pytest.fail, **options})

  return make


def lease_files(root):
  return [n for n in tf.io.gfile.listdir(root) if n.startswith("lease-")]


def write_foreign_lease(root, expires):
  """Writes the lease of a process on another machine."""
  lease = {"host": "far", "process": 7, "machine": "far", "expires": expires}
  tf.io.gfile.makedirs(root)
  write_atomically(f"{root}/lease-far-7-0.json", json.dumps(lease))


def test_second_holder_is_refused_until_release(root, make_lock):
  first, second = make_lock(), make_lock()
  assert first.holder() is None
  first.acquire()
  name, process = socket.gethostname(), os.getpid()
  with pytest.raises(UserError, match=f"process {process} on host {name!r}"):
    second.acquire()
  assert len(lease_files(root)) == 1
  second.release()  # not its own
  assert second.holder().process == process and first.holder() is None
  first.release()
  second.acquire()
  assert first.holder() is not None
  second.release()
  assert lease_files(root) == []


def test_expired_lease_is_taken_over_at_once(make_lock, clock):
  first, second = make_lock(), make_lock()
  first.acquire()
  clock.now += 59.9
  assert second.holder() is not None
  clock.now += 0.1
  second.acquire()
  assert first.holder() is not None


def test_renewed_lease_does_not_expire(make_lock, clock):
  first, second = make_lock(), make_lock()
  first.acquire()
  for _ in range(5):
    clock.now += 59
    first.renew()
    assert second.holder() is not None


def test_stalled_holder_gives_up_after_takeover(make_lock, clock):
  lost = []
  first, second = make_lock(on_lost=lost.append), make_lock()
  first.acquire()
  clock.now += 61
  second.acquire()
  first.renew()
  assert len(lost) == 1 and first.holder() is not None
  second.renew()
  assert second.holder() is None  # the only lease is its own


def test_holder_gives_up_after_takeover_by_fast_clock(make_lock, clock):
  lost, fast = [], Clock()
  fast.now += 3600
  first = make_lock(on_lost=lost.append)
  second = make_lock(clock=fast)
  first.acquire()
  second.acquire()
  clock.now += 15  # in time, by its own clock
  first.renew()
  assert len(lost) == 1
  second.renew()


def test_stalled_holder_continues_without_takeover(make_lock, clock):
  first, second = make_lock(), make_lock()
  first.acquire()
  clock.now += 1000
  assert second.holder() is None  # looking takes nothing away
  first.renew()
  assert second.holder() is not None


def test_slow_renewal_notices_takeover_during_the_write(
  make_lock, clock, monkeypatch
):
  """The renewal starts in time, and reaches the file system too late."""
  lost = []
  first, second = make_lock(on_lost=lost.append), make_lock()
  first.acquire()
  clock.now += 59
  write = run_dir.write_atomically

  def write_slowly(path, content):
    monkeypatch.setattr(run_dir, "write_atomically", write)
    clock.now += 2
    second.acquire()
    write(path, content)

  monkeypatch.setattr(run_dir, "write_atomically", write_slowly)
  first.renew()
  assert len(lost) == 1


def test_simultaneous_starts_never_both_hold(make_lock, monkeypatch):
  """Both write before either lists."""
  first, second = make_lock(), make_lock()
  write, writes = run_dir.write_atomically, []

  def write_both_first(path, content):
    writes.append((path, content))
    if len(writes) == 1:
      with pytest.raises(UserError, match="is in use"):
        second.acquire()
    elif len(writes) == 2:
      write(*writes[0])
    write(path, content)

  monkeypatch.setattr(run_dir, "write_atomically", write_both_first)
  first.acquire()
  assert second.holder() is not None and first.holder() is None


@pytest.mark.parametrize("renewed", [False, True])
def test_waits_for_sign_of_life_of_another_machine(
  root, make_lock, clock, renewed
):
  write_foreign_lease(root, expires=clock.now + 50)
  begin, lock = clock.now, make_lock()
  if renewed:
    clock.on_sleep = lambda: write_foreign_lease(root, clock.now + 60)
    with pytest.raises(UserError, match="process 7 on host 'far'"):
      lock.acquire()
    assert clock.now - begin < 15
  else:
    lock.acquire()
    assert 50 <= clock.now - begin < 60
    assert len(lease_files(root)) == 1


def test_nested_hold_in_one_thread_shares_the_lock(root, make_lock):
  with make_lock().hold():
    with make_lock().hold():
      assert len(lease_files(root)) == 1
    assert len(lease_files(root)) == 1
  assert lease_files(root) == []
  with make_lock().hold():
    pass


def test_lock_outlives_failed_heartbeats_and_errors(root, monkeypatch):
  renewals, other = [], RunLock(root)
  write = run_dir.write_atomically

  def write_sometimes(path, content):
    renewals.append(path)
    if len(renewals) == 2:
      raise tf.errors.UnavailableError(None, None, "the store is busy")
    write(path, content)

  monkeypatch.setattr(run_dir, "write_atomically", write_sometimes)
  with pytest.raises(KeyboardInterrupt):
    with RunLock(root, lease_seconds=0.4).hold():
      wait_for(lambda: len(renewals) > 5)
      assert other.holder() is not None
      raise KeyboardInterrupt
  assert other.holder() is None


@pytest.mark.parametrize(
  "content",
  [b"", b'{"host": "x", "proc', b"[]", b"\xff\xfe", b'{"expires": 1e12}'],
)
def test_torn_lease_expires(content, tmp_path, clock):
  path = tmp_path / "lease-host-1-torn.json"
  path.write_bytes(content)
  clock.now = path.stat().st_mtime + 59
  lock = RunLock(str(tmp_path), clock=clock, sleep=clock.sleep)
  assert lock.holder() is not None
  lock.acquire()  # waits for the rest of the lease
  assert not path.exists()


def test_only_leases_count(tmp_path):
  for name in ("lease-a-1-x.json.1234.partial", ".nfs0123", "config.gin"):
    (tmp_path / name).write_text("{}")
  assert RunLock(str(tmp_path)).holder() is None


def wait_for(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def hammer(root, log, rounds, competitors):
  """Holds the lock `rounds` times, and checks that nobody else does."""

  def sleep(seconds):
    time.sleep(seconds / 100)

  lock = RunLock(root, sleep=sleep)
  while len(tf.io.gfile.listdir(log)) < competitors - 1:
    time.sleep(0.001)
  while rounds:
    try:
      lock.acquire()
    except UserError:
      sleep(random.random())
      continue
    marker = f"{log}/marker"
    assert not tf.io.gfile.exists(marker)
    with tf.io.gfile.GFile(marker, "w") as file:
      file.write(f"{os.getpid()} {threading.get_ident()}")
    sleep(random.random() / 5)
    tf.io.gfile.remove(marker)
    lock.release()
    rounds -= 1


def run_hammer(root, log, number, competitors):
  with tf.io.gfile.GFile(f"{log}/ready-{number}", "w") as file:
    file.write("")
  hammer(root, log, 10, competitors)
  with tf.io.gfile.GFile(f"{log}/done-{number}", "w") as file:
    file.write("")


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_competitors_hold_the_lock_one_at_a_time(kind, tmp_path):
  start, base = PROCESSES.Process, str(tmp_path)
  if kind == "threads":
    start, base = threading.Thread, f"ram:/{tmp_path}"
  for name in ("run", "log"):
    tf.io.gfile.makedirs(f"{base}/{name}")
  competitors = [
    start(target=run_hammer, args=(f"{base}/run", f"{base}/log", n, 4))
    for n in range(4)
  ]
  for competitor in competitors:
    competitor.start()
  for competitor in competitors:
    competitor.join(60)
  done = [n for n in tf.io.gfile.listdir(f"{base}/log") if n[:4] == "done"]
  assert len(done) == 4 and lease_files(f"{base}/run") == []


def hold_for_a_minute(root, lease_seconds):
  with RunLock(root, lease_seconds=lease_seconds).hold():
    time.sleep(60)


def start_holder(root, lease_seconds):
  process = PROCESSES.Process(
    target=hold_for_a_minute, args=(root, lease_seconds)
  )
  process.start()
  wait_for(lambda: RunLock(root).holder() is not None)
  return process


def test_lock_of_killed_process_is_void_at_once(tmp_path):
  holder, lock = start_holder(str(tmp_path), 1000), RunLock(str(tmp_path))
  with pytest.raises(UserError, match=f"in use by process {holder.pid} "):
    lock.acquire()
  holder.kill()
  holder.join()
  lock.acquire()


def test_suspended_process_exits_after_takeover(tmp_path):
  holder, lock = start_holder(str(tmp_path), 0.5), RunLock(str(tmp_path))
  os.kill(holder.pid, signal.SIGSTOP)
  wait_for(lambda: lock.holder() is None)
  lock.acquire()
  os.kill(holder.pid, signal.SIGCONT)
  holder.join(30)
  assert holder.exitcode == 1
  assert len(lease_files(str(tmp_path))) == 1
