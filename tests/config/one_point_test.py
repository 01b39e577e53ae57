"""One point in this process: who may, and what is recorded."""

import json

import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.config.one_point import run_point
from nfnets_tf.errors import Diverged, NothingToDo, Preempted, UserError
from nfnets_tf.scaling.board import Board
from nfnets_tf.scaling.points import Point

POINT = Point("SIZE=2", {"SIZE": 2}, "SIZE=2")
FILE = """\
from __gin__ import dynamic_registration
from nfnets_tf import config
from tests.support import small_job
config.Launch.job = @small_job.Job()
small_job.Job:
  rate = 0.4
  size = 2
  wrong = {!r}
"""


@pytest.fixture
def board(tmp_path):
  return Board(str(tmp_path), lease_seconds=60)


def run(board, wrong=None, started=lambda folder: None):
  path = f"{board.root}/run.gin"
  with open(path, "w") as file:
    file.write(FILE.format(wrong))
  return run_point(
    Configuration([path]),
    board,
    POINT,
    loss="heldout_loss",
    terminal=None,
    started=started,
  )


def record(board):
  return board.records().get(POINT.name)


def test_a_point_is_run_in_its_folder_and_recorded(board):
  folders = []
  assert run(board, started=folders.append) == "loss 0.500"
  assert folders == [board.folder("SIZE=2")]
  found = record(board)
  assert found["state"] == "done" and found["bindings"] == {"SIZE": 2}
  assert found["result"] == {"heldout_loss": 0.5} and found["seconds"] >= 0
  assert board.claims.owner("SIZE=2") is None


def test_what_is_done_is_not_done_again(board):
  run(board)
  with pytest.raises(NothingToDo, match="SIZE=2 is done already"):
    run(board, "bug")


def test_what_another_process_works_at_is_left_to_it(board):
  other = Board(board.root, lease_seconds=60)
  assert other.claims.take("SIZE=2")
  with pytest.raises(NothingToDo, match="works at SIZE=2 already"):
    run(board)
  assert record(board) is None and other.claims.owner("SIZE=2")


@pytest.mark.parametrize(
  "wrong, error, reason, diverged",
  [
    ("diverged", Diverged, "the loss is not finite; lower it.", True),
    ("nan", Diverged, "the heldout_loss of SIZE=2 is nan; lower", True),
    ("large", UserError, "this is too large; make it smaller.", False),
    ("bug", KeyError, "KeyError: 'what'", False),
    ("no loss", UserError, "SIZE=2 has no number 'heldout_loss'", False),
  ],
)
def test_a_failure_is_recorded_with_its_reason(
  board, wrong, error, reason, diverged
):
  with pytest.raises(error):
    run(board, wrong)
  found = record(board)
  assert found["state"] == "failed" and reason in found["reason"]
  assert found["diverged"] is diverged
  assert board.claims.owner("SIZE=2") is None


def test_a_failed_point_may_be_run_again(board):
  with pytest.raises(Preempted):
    run(board, "asked to end")
  board.write(
    "SIZE=2", "failed", cell="SIZE=2", bindings={}, reason="it rained"
  )
  with pytest.raises(Preempted):  # not refused
    run(board, "asked to end")


def test_one_that_is_asked_to_end_is_left_to_do(board):
  with pytest.raises(Preempted):
    run(board, "asked to end")
  assert record(board) is None and board.claims.owner("SIZE=2") is None


def test_workers_that_are_not_the_chief_record_nothing(board, monkeypatch):
  cluster = {"worker": ["a:1", "b:2"]}
  for index, recorded in ((1, False), (0, True)):
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": cluster, "task": task})
    monkeypatch.setenv("TF_CONFIG", config)
    run(board)
    assert (record(board) is not None) is recorded
