import json
import os
import tempfile
import threading
import types

import pytest
import tensorflow as tf

from nfnets_tf.errors import RunError, UserError
from nfnets_tf.scaling.board import DONE, FAILED, PENDING, RUNNING, Board
from nfnets_tf.scaling.sweep import Sweep

NAME = "VARIANT=F7+,EPOCHS=0.25,PEAK_LR=1e-05"


@pytest.fixture(params=["local", "ram"])
def root(request, tmp_path):
  """A work directory on a disk, and on a file system like a store's."""
  return f"ram:/{tmp_path}" if request.param == "ram" else str(tmp_path / "w")


def board_of(root):
  return Board(root, lease_seconds=60)


def test_a_point_is_pending_then_running_then_done(root):
  mine, other = board_of(root), board_of(root)
  assert mine.state(NAME) == PENDING and mine.records() == {}
  assert mine.claims.take(NAME)
  assert mine.state(NAME) == other.state(NAME) == RUNNING
  mine.write(NAME, DONE, cell="c", bindings={"A": 0.1}, result={"loss": 2.5})
  assert mine.state(NAME) == other.state(NAME) == DONE  # though still claimed
  mine.claims.release(NAME)
  for board in (mine, other, board_of(root)):
    (record,) = board.records().values()
    assert record.pop("ended") > 0
    assert record == {
      "state": DONE,
      "cell": "c",
      "bindings": {"A": 0.1},
      "result": {"loss": 2.5},
    }


def test_a_point_whose_process_gives_up_is_pending_again(root):
  board = board_of(root)
  board.claims.take(NAME)
  board.claims.release(NAME)
  assert board.state(NAME) == PENDING


def test_a_failure_can_be_forgotten_and_what_is_done_cannot(root):
  board = board_of(root)
  board.write("a", DONE)
  board.write("b", FAILED, reason="out of memory")
  assert board.records()["b"]["reason"] == "out of memory"
  for name in ("a", "b", "c", "b"):
    board.forget_failure(name)
  assert set(board.records()) == {"a"}
  assert board.state("b") == PENDING and board.state("a") == DONE


def test_what_is_done_is_read_once_and_failures_again_and_again(
  root, monkeypatch
):
  mine, other = board_of(root), board_of(root)
  mine.write("a", DONE)
  mine.write("b", FAILED, reason="first")
  mine.records()
  read, opened = tf.io.gfile.GFile, []
  monkeypatch.setattr(
    tf.io.gfile, "GFile", lambda p, *a: opened.append(p) or read(p, *a)
  )
  other.write("b", FAILED, reason="second")
  opened.clear()
  assert mine.records()["b"]["reason"] == "second"
  assert [os.path.basename(path) for path in opened] == ["b.json"]
  other.write("b", DONE)
  assert {r["state"] for r in mine.records().values()} == {DONE}


def test_numbers_keep_all_their_digits(root):
  board, values = board_of(root), [0.30000000000000004, 1e-05, 1.6, 1 / 3]
  board.write("a", DONE, bindings={"A": values}, loss=float("inf"))
  assert board.records()["a"]["bindings"] == {"A": values}
  assert board.records()["a"]["loss"] == float("inf")


def test_a_record_that_vanishes_while_all_are_read_is_none(root, monkeypatch):
  board = board_of(root)
  board.write("a", DONE)
  here = tf.io.gfile.listdir
  monkeypatch.setattr(
    tf.io.gfile, "listdir", lambda p: [*here(p), "gone.json", "x.json.partial"]
  )
  assert set(board.records()) == {"a"}


def test_a_torn_record_is_named(tmp_path):
  board = board_of(str(tmp_path))
  board.write("a", DONE)
  path = tmp_path / "records" / "a.json"
  path.write_bytes(path.read_bytes()[:5])
  for look in (board_of(str(tmp_path)).records, lambda: board.state("a")):
    with pytest.raises(UserError) as error:
      look()
    assert str(error.value) == (
      f"{str(path)!r} is no record of a point; remove it, and the point is done"
      " from where its checkpoints are."
    )


def test_all_is_below_the_root(tmp_path):
  board = board_of(str(tmp_path))
  assert board.folder(NAME) == str(tmp_path / "points" / NAME)
  for path in (board.plan, board.results, board.page):
    assert os.path.dirname(path) == str(tmp_path)
  log = board.log(NAME)
  assert log == str(tmp_path / "logs" / f"{NAME}.log")
  assert os.path.isdir(os.path.dirname(log))


def test_logs_are_local_wherever_the_sweep_is(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  log = board_of(f"ram:/{tmp_path}").log(NAME)
  assert log.startswith(str(tmp_path)) and log.endswith(f"/{NAME}.log")
  with open(log, "ab"):  # as an engine does
    assert log == board_of(f"ram:/{tmp_path}").log(NAME)


def test_points_that_have_begun_are_those_with_a_folder(root):
  board = board_of(root)
  assert board.begun() == set()
  for name in ("a", NAME):
    tf.io.gfile.makedirs(f"{board.folder(name)}/checkpoints")
  assert board.begun() == {"a", NAME}


def test_a_disk_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / "records").touch()
  (tmp_path / "logs").touch()
  board = board_of(str(tmp_path))
  for write in (lambda: board.write("a", DONE), lambda: board.log("a")):
    with pytest.raises(RunError, match="cannot be written"):
      write()


def test_many_who_write_and_read_at_once_see_whole_records(tmp_path):
  names, seen = [f"p{i}" for i in range(20)], []

  def work(first):
    board = board_of(str(tmp_path))
    for name in names[first::4]:
      board.write(name, DONE, filler="x" * 5000)
      seen.append(board.records())

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(seen) == 20
  assert all(len(r["filler"]) == 5000 for all_ in seen for r in all_.values())
  assert set(board_of(str(tmp_path)).records()) == set(names)
  assert json.loads((tmp_path / "records" / "p3.json").read_text())


def test_what_ends_while_a_sweep_looks_is_not_begun_again(
  tmp_path, monkeypatch
):
  mine, other = board_of(str(tmp_path)), board_of(str(tmp_path))
  engine = types.SimpleNamespace(
    at_once=1,
    submit=lambda *given: pytest.fail("it was begun"),
    wait=lambda seconds: {},
  )
  sweep = Sweep(
    grid=[{"A": 1}],
    tuning=None,
    engine=engine,
    loss="loss",
    lease_seconds=60,
    poll_seconds=1,
    price=None,
    report=None,
  )
  other.claims.take("A=1")
  read, looks = Board.records, []

  def records(board):
    found = read(board)
    looks.append(len(found))
    other.write("A=1", DONE, cell="A=1", bindings={"A": 1})
    other.claims.release("A=1")
    return found

  monkeypatch.setattr(Board, "records", records)
  engine.stop = lambda: None
  sweep.run(mine, sweep.cells, None, None)
  assert looks == [0, 1]
