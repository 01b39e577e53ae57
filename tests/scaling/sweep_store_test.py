import json
import os
import tempfile
import threading

import pytest
import tensorflow as tf

from nfnets_tf.errors import RunError, UserError
from nfnets_tf.scaling.sweep_store import (
  DONE,
  FAILED,
  PENDING,
  RUNNING,
  SweepStore,
  Trial,
)

NAME = "EPOCHS=0.25,VARIANT=F7+,PEAK_LR=1e-05"
TRIAL = Trial(NAME, "EPOCHS=0.25,VARIANT=F7+", {"EPOCHS": 0.25})
A = Trial("A=1", "A=1", {"A": 1})


@pytest.fixture(params=["local", "ram"])
def root(request, tmp_path):
  """A work directory on a disk, and on a file system like an object store."""
  return f"ram:/{tmp_path}" if request.param == "ram" else str(tmp_path / "w")


def test_trial_is_pending_then_running_then_done(root):
  store, other = SweepStore(root), SweepStore(root)
  assert store.trial(NAME) is None and store.trials() == {}
  store.start(TRIAL)
  assert other.trials() == {NAME: TRIAL} and TRIAL.state == PENDING
  lock = store.lock(NAME)
  lock.acquire()
  assert other.trial(NAME).state == RUNNING
  store.finish(TRIAL, DONE, result={"loss": 2.5})
  assert other.trial(NAME).state == DONE  # though it is still locked
  lock.release()
  for reader in (store, other, SweepStore(root)):
    (trial,) = reader.trials().values()
    assert trial.state == DONE and trial.result == {"loss": 2.5}
    assert trial.bindings == TRIAL.bindings


def test_trial_of_process_that_gave_up_is_pending(root):
  store = SweepStore(root)
  with store.lock(NAME).hold():
    store.start(TRIAL)
    assert SweepStore(root).trial(NAME).state == RUNNING
  assert store.trial(NAME).state == PENDING


def test_starting_again_does_not_undo_an_outcome(root):
  store = SweepStore(root)
  store.start(A)
  store.finish(A, DONE)
  SweepStore(root).start(A)
  assert SweepStore(root).trial("A=1").state == DONE


def test_only_failures_that_did_not_diverge_are_forgotten(root):
  store = SweepStore(root)
  store.finish(A, DONE)
  for name, diverged in (("b", False), ("c", True)):
    trial = Trial(name, name, {})
    store.finish(trial, FAILED, reason="out of memory", diverged=diverged)
  assert store.trial("b").reason == "out of memory"
  for _ in range(2):
    store.forget_failures()
  states = {name: trial.state for name, trial in store.trials().items()}
  assert states == {"A=1": DONE, "b": PENDING, "c": FAILED}


def test_done_records_are_read_once_and_failures_every_time(root, monkeypatch):
  store, other = SweepStore(root), SweepStore(root)
  store.finish(A, DONE)
  failure = Trial("b", "b", {})
  store.finish(failure, FAILED, reason="first")
  store.trials()
  gfile, opened = tf.io.gfile.GFile, []
  monkeypatch.setattr(
    tf.io.gfile, "GFile", lambda p, *a: opened.append(p) or gfile(p, *a)
  )
  other.finish(failure, FAILED, reason="second")
  opened.clear()
  assert store.trials()["b"].reason == "second"
  assert [os.path.basename(path) for path in opened] == ["b.json"]


def test_numbers_keep_all_their_digits(root):
  store, values = SweepStore(root), [0.30000000000000004, 1e-05, 1.6, 1 / 3]
  trial = Trial("a", "a", {"A": values})
  store.finish(trial, DONE, result={"loss": float("inf")})
  trial = SweepStore(root).trial("a")
  assert trial.bindings == {"A": values}
  assert trial.result == {"loss": float("inf")}


def test_other_files_are_ignored(root, monkeypatch):
  store = SweepStore(root)
  store.finish(A, DONE)
  tf.io.gfile.makedirs(store.folder("not-a-trial"))
  store.start(TRIAL)
  tf.io.gfile.makedirs(store.folder("copy"))
  tf.io.gfile.copy(
    f"{store.folder(NAME)}/point.json", f"{store.folder('copy')}/point.json"
  )
  listdir = tf.io.gfile.listdir  # a record vanishes; a store adds slashes
  monkeypatch.setattr(
    tf.io.gfile,
    "listdir",
    lambda p: (
      [*listdir(p), "gone.json", "x.json.partial"]
      if p.endswith("records")
      else [f"{name}/" for name in listdir(p)]
      if p.endswith("points")
      else listdir(p)
    ),
  )
  assert set(SweepStore(root).trials()) == {"A=1", NAME}


@pytest.mark.parametrize("content", ["", '{"name": "A', "[]", '{"x": 1}'])
def test_invalid_record_is_named(tmp_path, content):
  store = SweepStore(str(tmp_path))
  store.finish(A, DONE)
  path = tmp_path / "records" / "A=1.json"
  path.write_text(content)
  with pytest.raises(UserError, match="A=1.json' is not a valid record; del"):
    store.trials()


def test_all_files_are_below_the_root(tmp_path):
  store = SweepStore(str(tmp_path))
  assert store.folder(NAME) == str(tmp_path / "points" / NAME)
  for path in (store.config, store.plan, store.results, store.report):
    assert os.path.dirname(path) == str(tmp_path)
  log = store.log(NAME)
  assert log == str(tmp_path / "logs" / f"{NAME}.log")
  assert os.path.isdir(os.path.dirname(log))


def test_logs_of_remote_sweeps_are_local(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  log = SweepStore(f"ram:/{tmp_path}").log(NAME)
  assert log.startswith(str(tmp_path)) and log.endswith(f"/{NAME}.log")
  with open(log, "ab"):  # as an engine does
    assert log == SweepStore(f"ram:/{tmp_path}").log(NAME)


def test_unwritable_directory_is_reported(tmp_path):
  (tmp_path / "records").touch()
  (tmp_path / "logs").touch()
  store = SweepStore(str(tmp_path))
  for write in (lambda: store.finish(A, DONE), lambda: store.log("a")):
    with pytest.raises(RunError, match="cannot be written"):
      write()


def test_concurrent_processes_see_whole_records(tmp_path):
  names, seen = [f"p{i}" for i in range(12)], []

  def work(first):
    store = SweepStore(str(tmp_path))
    for name in names[first::4]:
      store.finish(Trial(name, name, {}), DONE, reason="x" * 5000)
      seen.append(store.trials())

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(seen) == 12
  assert all(len(t.reason) == 5000 for trials in seen for t in trials.values())
  assert set(SweepStore(str(tmp_path)).trials()) == set(names)
  assert json.loads((tmp_path / "records" / "p3.json").read_text())
