import contextlib
import math
import os
import threading
import time

import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import claims, points
from nfnets_tf.scaling.board import DONE, FAILED, Board
from nfnets_tf.scaling.sweep import Sweep
from nfnets_tf.scaling.tuning import GridSearch

GRID = [{"W": w, "E": e} for w in (1, 2, 3) for e in (1, 2, 4)]
OPTIMUM = {1: 0.4, 2: 0.2, 3: 0.1}  # by width, halved with each doubled budget


def loss_of(bindings):
  best = OPTIMUM[bindings["W"]] / bindings["E"]
  return abs(math.log2(bindings.get("LR", best) / best))


class Engine:
  """Runs a point as its process does: claims it, works, records what came.

  Those of `ends` end with its exit codes, in turn, and leave no record.
  """

  def __init__(self, board, at_once=1, ends=(), before=lambda running: None):
    self.at_once, self._board, self._before = at_once, board, before
    self._ends = {name: list(codes) for name, codes in dict(ends).items()}
    self.begun, self.done, self.logs = [], [], []
    self._running = {}

  def submit(self, name, command, log):
    (self._running[name],) = command
    assert len(self._running) <= self.at_once
    self.begun.append(name)
    self.logs.append(log)

  def wait(self, seconds):
    self._before(self._running)
    for name in list(self._running):
      return {name: self._end(self._running.pop(name))}
    time.sleep(seconds)
    return {}

  def _end(self, point):
    if self._ends.get(point.name):
      return self._ends[point.name].pop(0)
    if self._board.claims.take(point.name):
      if point.name not in self._board.records():
        time.sleep(0.005)
        write(self._board, point)
        self.done.append(point.name)
      self._board.claims.release(point.name)
    return 0

  def stop(self):
    pytest.fail("it was stopped")


def write(board, point):
  result = {"loss": loss_of(point.bindings)}
  board.write(
    point.name, DONE, cell=point.cell, bindings=point.bindings, result=result
  )


def board_of(tmp_path):
  return Board(str(tmp_path), lease_seconds=60)


def make(tmp_path, tuned=True, grid=GRID, most=9, start=0.4, **engine):
  tuning = GridSearch(
    macro="LR", start=start, factor=2, both_sides=True, most_trials=most
  )
  return Sweep(
    grid=grid,
    tuning=tuning if tuned else None,
    engine=Engine(board_of(tmp_path), **engine),
    loss="loss",
    lease_seconds=60,
    poll_seconds=0.01,
    price=None,
    report=None,
  )


def run(sweep, tmp_path, cells=None):
  """Runs it; returns the names of what was done, in order."""
  told = []
  sweep.run(
    board_of(tmp_path),
    sweep.cells if cells is None else cells,
    lambda point: [point],
    lambda: told.append(1),
  )
  assert len(told) == len(sweep.engine.begun)
  return sweep.engine.done


@pytest.mark.parametrize("at_once", [1, 4])
def test_every_point_is_done_once_in_the_order_of_the_grid(tmp_path, at_once):
  sweep = make(tmp_path, tuned=False, at_once=at_once)
  assert run(sweep, tmp_path) == [cell.name for cell in sweep.cells]
  assert sweep.engine.begun == sweep.engine.done
  log = board_of(tmp_path).log
  assert sweep.engine.logs == [log(name) for name in sweep.engine.done]
  assert run(make(tmp_path, tuned=False), tmp_path) == []


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_cell_ends_at_its_own_optimum(tmp_path, at_once):
  sweep = make(tmp_path, at_once=at_once)
  assert len(set(run(sweep, tmp_path))) == len(sweep.engine.begun)
  records = board_of(tmp_path).records()
  for cell in sweep.cells:
    best = OPTIMUM[cell.bindings["W"]] / cell.bindings["E"]
    assert sweep.optimum(cell, records) == best
    assert {best / 2, best, best * 2} <= set(sweep.losses(cell, records))


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("at_once", [1, 3])
def test_two_who_share_a_folder_do_each_point_once(
  tmp_path, monkeypatch, tuned, at_once
):
  monkeypatch.setattr(claims, "_PAUSE_SECONDS", 0.01)
  both = threading.Barrier(2)

  def in_step(running):
    with contextlib.suppress(threading.BrokenBarrierError):
      both.wait(1)  # until one has ended

  given = {"tuned": tuned, "at_once": at_once, "before": in_step}
  sweeps = [make(tmp_path, **given) for _ in range(2)]
  threads = [threading.Thread(target=run, args=(s, tmp_path)) for s in sweeps]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  records = board_of(tmp_path).records()
  done = sweeps[0].engine.done + sweeps[1].engine.done
  assert sorted(done) == sorted(records)  # none twice
  for cell in sweeps[0].cells:
    assert sweeps[0].trials(cell, records) == []


@pytest.fixture
def first(tmp_path):
  """(the first cell, its trial at a value, the board of another process)."""
  cell = make(tmp_path).cells[0]

  def trial(value):
    return points.trial_of(cell, "LR", value)

  return cell, trial, board_of(tmp_path)


def test_a_cell_that_was_begun_elsewhere_is_not_begun_again(tmp_path, first):
  cell, trial, other = first
  assert other.claims.take(trial(1.6).name)

  def before(running):
    if other.claims.owner(trial(1.6).name):
      assert not running
      write(other, trial(1.6))
      other.claims.release(trial(1.6).name)

  done = run(make(tmp_path, before=before), tmp_path, [cell])
  assert done == [trial(value).name for value in (0.8, 0.4, 0.2)]


def test_a_cell_that_was_half_begun_goes_on_there(tmp_path, first):
  cell, trial, other = first
  for name in (trial(1.6).name, f"{cell.name},LR=0.1.bak", "W=9,LR=1.0"):
    os.makedirs(other.folder(name))
  sweep = make(tmp_path)
  assert run(sweep, tmp_path, [cell])[0] == trial(1.6).name


def test_what_another_one_gives_up_is_taken_over(tmp_path, first):
  cell, trial, other = first
  other.claims.take(trial(0.4).name)
  looks = []

  def before(running):
    looks.append(dict(running))
    if len(looks) == 3:
      other.claims.release(trial(0.4).name)

  assert trial(0.4).name in run(make(tmp_path, before=before), tmp_path, [cell])
  assert looks[:3] == [{}] * 3


@pytest.mark.parametrize(
  "codes, state",
  [([1], DONE), ([1, -9], DONE), ([0] * 4, DONE), ([1, 1, 1], FAILED)],
)
def test_a_point_still_claimed_may_fail_twice(tmp_path, first, codes, state):
  """As when a lease was lost, or a machine is gone and its lease is not."""
  (cell, trial, other), left = first, list(codes)
  name = trial(0.4).name

  def before(running):
    if running and left:
      left.pop()
      other.claims.take(name)  # just after it began here
    elif not running:
      other.claims.release(name)

  sweep = make(tmp_path, before=before, ends={name: codes})
  run(sweep, tmp_path, [cell])
  assert sweep.engine.begun.count(name) == len(codes) + (state == DONE)
  assert other.records()[name]["state"] == state


def test_trials_that_run_count_among_those_allowed(tmp_path):
  for most in (1, 2, 3, 4, 5):
    folder = tmp_path / str(most)
    sweep = make(folder, grid=GRID[:1], most=most, start=0.05, at_once=3)
    assert len(run(sweep, folder)) == most


def test_records_of_what_is_tuned_no_more_are_let_alone(tmp_path):
  run(make(tmp_path, tuned=False), tmp_path)
  sweep = make(tmp_path)
  assert len(run(sweep, tmp_path)) == 27
  assert run(make(tmp_path, tuned=False), tmp_path) == []


@pytest.mark.parametrize(
  "words, given",
  [
    ("lease_seconds = 0 and", {"lease_seconds": 0}),
    ("poll_seconds = -1 cannot", {"poll_seconds": -1}),
    ("price = -0.5 cannot", {"price": -0.5}),
    ("LR is tuned and an axis", {"grid": [{"LR": 1}]}),
    ("no points", {"grid": []}),
  ],
)
def test_what_cannot_be_used_is_told(tmp_path, words, given):
  names = "tuning engine loss lease_seconds poll_seconds price report"
  good = make(tmp_path)
  whole = {name: getattr(good, name) for name in names.split()}
  assert Sweep(grid=GRID, **{**whole, "price": 0}).cells == good.cells
  with pytest.raises(UserError, match=words):
    Sweep(**{"grid": GRID, **whole, **given})
