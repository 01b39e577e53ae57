import multiprocessing
import os
import socket
import threading
import time

import pytest
import tensorflow as tf

from nfnets_tf.scaling import claims
from nfnets_tf.scaling.claims import Claims

# Processes that begin with everything imported.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["nfnets_tf.scaling.claims"])
HAMMER = """
import pathlib, random, time
from nfnets_tf.scaling import claims

claims._PAUSE_SECONDS = 0.005
folder, taken, end = pathlib.Path(folder), 0, time.monotonic() + 20
mine = claims.Claims(str(folder / "claims"), lease_seconds=60)
(folder / f"{mine._owner}.ready").touch()
while len(list(folder.glob("*.ready"))) < many:
  time.sleep(0.001)
while taken < 20 and time.monotonic() < end:
  name = random.choice("ab")
  if mine.take(name):
    (folder / name).touch(exist_ok=False)  # nobody else is here
    time.sleep(random.uniform(0, 0.002))
    (folder / name).unlink()
    mine.release(name)
    taken += 1
(folder / f"{mine._owner}.{taken}").touch()
"""
OWNER = """
import logging, time
from nfnets_tf.scaling.claims import Claims

mine = Claims(directory, lease_seconds=lease_seconds)
logging.basicConfig(filename=log, format="%(message)s")
assert mine.take("a")
with mine.held("a"):
  logging.error("taken")
  time.sleep(30)
"""


def start_owner(folder, lease_seconds):
  """A process that holds a claim; and what it says."""
  log = folder / "log"
  given = {
    "directory": str(folder / "claims"),
    "lease_seconds": lease_seconds,
    "log": str(log),
  }
  process = PROCESSES.Process(target=exec, args=(OWNER, given))
  process.start()
  wait_for(lambda: log.exists() and log.read_text())
  return process, log


def wait_for(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_lost(monkeypatch):
  """A lease that the tests' own process loses does not end them silently."""
  names = []
  monkeypatch.setattr(claims, "_end", names.append)
  yield
  assert not names


@pytest.fixture(params=["local", "ram"])
def directory(request, tmp_path):
  """A folder for claims, on a disk and on a file system like a store's."""
  return f"ram:/{tmp_path}" if request.param == "ram" else str(tmp_path / "c")


def pair(directory, lease_seconds=60.0):
  return [Claims(directory, lease_seconds=lease_seconds) for _ in range(2)]


def test_who_takes_first_has_it_until_he_gives_it_back(directory):
  mine, other = pair(directory)
  name = "VARIANT=F7+,EPOCHS=0.5,PEAK_LR=1e-05"
  assert mine.names() == [] and mine.owner(name) is None
  assert mine.take(name) and not other.take(name)
  assert other.take("b")
  assert mine.owner(name) == other.owner(name) != other.owner("b")
  assert mine.names() == other.names() == [name, "b"]
  owner = f"{socket.gethostname()}-{os.getpid()}-"
  assert other.owner(name).startswith(owner)
  other.release(name)  # which is not his
  assert not other.take(name)
  mine.release(name)
  mine.release(name)
  assert other.take(name) and not mine.take(name)


def test_an_object_stores_folders_end_in_a_slash(tmp_path, monkeypatch):
  mine, other = pair(str(tmp_path))
  assert mine.take("a")
  here = tf.io.gfile.listdir
  monkeypatch.setattr(
    tf.io.gfile,
    "listdir",
    lambda p: [f"{x}/" if os.path.isdir(f"{p}/{x}") else x for x in here(p)],
  )
  assert other.names() == ["a"] and not other.take("a")


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_of_many_one_at_a_time_has_it_and_each_in_the_end(
  kind, tmp_path, monkeypatch
):
  monkeypatch.setattr(claims, "_PAUSE_SECONDS", None)  # is put back
  make = threading.Thread if kind == "threads" else PROCESSES.Process
  given = {"folder": str(tmp_path), "many": 5}
  many = [make(target=exec, args=(HAMMER, {**given})) for _ in range(5)]
  for one in many:
    one.start()
  for one in many:
    one.join(60)
  # Who met another one there has come to no end.
  assert len(list(tmp_path.glob("*.20"))) == len(many)
  assert Claims(str(tmp_path / "claims"), lease_seconds=60).names() == []


def test_of_two_that_come_at_once_one_has_it_in_the_end(tmp_path, monkeypatch):
  mine, other = pair(str(tmp_path))
  renew, pauses = Claims._renew, []

  def renew_both(one, name):
    renew(mine, name)
    if not pauses:
      renew(other, name)

  def pause(seconds):
    pauses.append(seconds)
    other.release("a")  # for he has seen this one, too

  monkeypatch.setattr(Claims, "_renew", renew_both)
  monkeypatch.setattr(claims.time, "sleep", pause)
  assert mine.take("a") and len(pauses) == 1
  assert 0 <= pauses[0] <= claims._PAUSE_SECONDS


def test_a_lease_that_has_run_out_is_anybodys(directory):
  mine, other = pair(directory, lease_seconds=0.2)
  assert mine.take("a") and not other.take("a")
  wait_for(lambda: other.owner("a") is None)
  assert other.take("a") and mine.owner("a") == other._owner


def test_who_stood_still_goes_on_if_nobody_took_over(tmp_path):
  """As on a machine that slept: to look takes nothing away."""
  mine, other = pair(str(tmp_path), lease_seconds=0.2)
  assert mine.take("a")
  wait_for(lambda: other.owner("a") is None and other.names() == [])
  with mine.held("a"):
    wait_for(lambda: other.owner("a") == mine._owner)


def test_a_lease_that_is_held_lasts_and_ends_with_the_work(
  tmp_path, monkeypatch
):
  mine, other = pair(str(tmp_path), lease_seconds=2)
  assert mine.take("a")
  failures = []

  def fail(path):
    failures.append(path)
    raise tf.errors.UnavailableError(None, None, "the store is busy")

  with pytest.raises(KeyboardInterrupt), mine.held("a"):
    with monkeypatch.context() as patch:
      patch.setattr(tf.io.gfile, "listdir", fail)
      wait_for(lambda: failures)  # a bad moment
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
      assert not other.take("a")
      time.sleep(0.05)
    raise KeyboardInterrupt
  assert other.take("a")


def test_a_process_that_was_killed_leaves_nothing_claimed(
  tmp_path, monkeypatch
):
  owner, _ = start_owner(tmp_path, 1000)
  mine = Claims(str(tmp_path / "claims"), lease_seconds=1000)
  assert not mine.take("a")
  owner.kill()
  owner.join()
  with monkeypatch.context() as patch:
    # Of another machine's, or container's, processes nothing is known.
    patch.setattr(claims, "_MACHINE", f"{claims._MACHINE} or another")
    assert not mine.take("a")
  assert claims._MACHINE.startswith(socket.gethostname())
  assert mine.owner("a") is None and mine.take("a")


@pytest.mark.parametrize("taken_over", [False, True])
def test_who_has_lost_a_lease_ends_at_once(tmp_path, taken_over):
  owner, log = start_owner(tmp_path, 0.8)
  (path,) = (tmp_path / "claims" / "a").glob("[!.]*[!l]")
  path.unlink()
  mine = Claims(str(tmp_path / "claims"), lease_seconds=60)
  if taken_over:
    assert mine.take("a")
  owner.join(20)
  assert owner.exitcode == 1
  assert log.read_text().splitlines()[1:] == [
    "The lease of a ran out while this process stood still, and another one"
    " may work at it; ending. Raise sweep.Sweep.lease_seconds if that happens"
    " again."
  ]
  assert (mine.owner("a") is None) != taken_over


TORN = [
  b"",
  b'{"machine": "x", "proc',
  b"[]",
  b"\xff\xfe",
  b'{"machine": "x", "process": 1, "expires": "soon"}',
  b'{"expires": 99999999999}',
]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_claim_neither_stops_anybody_nor_lasts(content, tmp_path):
  mine = Claims(str(tmp_path), lease_seconds=100)
  path = tmp_path / "a" / "host-1-torn"
  path.parent.mkdir()
  for name in ("host-1-x.partial", ".nfs000123"):  # which are no claims
    (path.parent / name).write_bytes(content)
  assert mine.owner("a") is None
  path.write_bytes(content)
  assert mine.owner("a") == path.name and not mine.take("a")
  for age, lasts in ((99, True), (101, False)):
    os.utime(path, (time.time() - age,) * 2)
    assert bool(mine.names()) == lasts
  assert mine.take("a") and not path.exists()
