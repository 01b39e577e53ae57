import contextlib
import math
import threading

import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.sweep import (
  GridSearch,
  Sweep,
  grid_points,
)
from nfnets_tf.scaling.sweep_store import (
  DONE,
  FAILED,
  SweepStore,
  Trial,
  point_name,
)

LADDER = [
  {"VARIANT": m, "EPOCHS": e} for m in ("F0", "F1") for e in (0.25, 1, 8)
]
GRID = [{"W": w, "E": e} for w in (1, 2, 3) for e in (1, 2, 4)]
OPTIMUM = {1: 0.4, 2: 0.2, 3: 0.1}  # by width, halved with each doubled budget


def loss_of(bindings):
  best = OPTIMUM[bindings["W"]] / bindings["E"]
  return abs(math.log2(bindings.get("LR", best) / best))


def make_sweep(tuned=True, grid=GRID, most=9, start=0.4, engine=None, **given):
  search = GridSearch(
    macro="LR", start=start, factor=2.0, both_sides=True, most_trials=most
  )
  options = {
    "grid": grid,
    "tuning": search if tuned else None,
    "engine": engine,
    "loss": "loss",
    "poll_seconds": 0.01,
    "price": None,
    "report": None,
    **given,
  }
  return Sweep(**options)


@pytest.mark.parametrize(
  "words, given",
  [
    ("poll_seconds = -1 is invalid", {"poll_seconds": -1}),
    ("price = -0.5 is invalid", {"price": -0.5}),
    ("LR is both tuned and an axis", {"grid": [{"LR": 1}]}),
    ("no points; bind an axis", {"grid": []}),
  ],
)
def test_invalid_sweep_is_refused(words, given):
  with pytest.raises(UserError, match=words):
    make_sweep(**given)


def done(trial, loss=1.0):
  return {trial.name: finished(trial, DONE, result={"loss": loss})}


def finished(trial, state, **outcome):
  return Trial(trial.name, trial.grid_point, trial.bindings, state, **outcome)


def test_point_starts_at_optimum_of_its_neighbor():
  sweep, trials, values = make_sweep(), {}, {}
  for point in sweep.points:
    best = OPTIMUM[point.bindings["W"]] / point.bindings["E"]
    assert sweep.optimum(point, trials) is None
    while new := sweep.next_trials(point, trials):
      values.setdefault(point.name, []).append(new[0].bindings["LR"])
      trials.update(done(new[0], loss_of(new[0].bindings)))
    assert sweep.optimum(point, trials) == best
  assert {name: tried[0] for name, tried in values.items()} == {
    "W=1,E=1": 0.4,  # the sweep's own start
    "W=1,E=2": 0.4,  # the optimum of W=1,E=1
    "W=1,E=4": 0.2,  # of W=1,E=2
    "W=2,E=1": 0.4,  # of W=1,E=1
    "W=2,E=2": 0.2,  # of W=1,E=2, which is before W=2,E=1 in the grid
    "W=2,E=4": 0.1,
    "W=3,E=1": 0.2,
    "W=3,E=2": 0.1,
    "W=3,E=4": 0.05,
  }
  # An optimum that holds takes three trials, and one a step lower, too.
  assert {len(tried) for tried in values.values()} == {3}


@pytest.mark.parametrize(
  "state, outcome, tried",
  [
    (FAILED, {}, []),
    (DONE, {"result": {"loss": math.nan}}, []),
    (DONE, {"result": {"another": 1.0}}, []),
    (FAILED, {"diverged": True}, [0.8]),
    (DONE, {"result": {"loss": 2.0}}, [0.8]),
  ],
)
def test_point_with_unknown_loss_is_undecided(state, outcome, tried):
  sweep = make_sweep(grid=[{"A": 1}, {"A": 2}])
  point, other = sweep.points
  trials = done(*sweep.next_trials(point, {}))
  lower, upper = sweep.next_trials(point, trials)
  trials[lower.name] = finished(lower, state, **outcome)
  new = sweep.next_trials(point, trials)
  assert [trial.bindings["LR"] for trial in new] == tried
  assert sweep.optimum(point, trials) is None
  # No other point starts at it.
  assert sweep.next_trials(other, trials)[0].bindings["LR"] == 0.4
  trials.update(done(upper, 3.0))
  assert sweep.optimum(point, trials) == (0.4 if tried else None)


def test_trials_of_other_macros_do_not_count():
  tuned = make_sweep(grid=[{"A": 1}])
  plain = make_sweep(grid=[{"A": 1}], tuned=False)
  for mine, other in ((tuned, plain), (plain, tuned)):
    (point,) = mine.points
    trials = done(*other.next_trials(point, {}))
    assert mine.trials_at(point, trials) == []
    assert mine.next_trials(point, trials) == mine.next_trials(point, {})


@pytest.mark.parametrize("tuned", [True, False])
def test_trial_is_found_by_name(tuned, tmp_path):
  sweep, store = make_sweep(tuned, grid=LADDER), SweepStore(str(tmp_path))
  for point in sweep.points:
    (trial,) = sweep.next_trials(point, {})
    assert sweep.find(trial.name, {}) == trial
  if tuned:
    other = Trial(f"{point.name},LR=0.3", point.name, {**point.bindings})
    with pytest.raises(UserError, match="LR=0.3 is invalid"):
      sweep.find(other.name, {})
    other.bindings["LR"] = 0.30000000000000004
    store.start(other)
    assert sweep.find(other.name, store.trials()) == other
  with pytest.raises(UserError) as error:
    sweep.find("x", {})
  message = str(error.value)
  assert "--points=x is invalid" in message and "from 1 to 6" in message
  assert LADDER[0]["VARIANT"] in message


def test_values_are_those_of_the_grid_after_reading(tmp_path):
  """JSON has no tuples, and a run may not resume with another value."""
  sweep = make_sweep(False, grid=[{"A": (1, "a")}])
  (trial,) = sweep.next_trials(sweep.points[0], {})
  store = SweepStore(str(tmp_path))
  store.start(trial)
  assert sweep.find(trial.name, store.trials()).bindings == {"A": (1, "a")}


class Engine:
  """Runs a trial as its process does: locks, works, and records the outcome.

  Those in `codes` end with its exit codes, in turn, and leave no record.
  """

  def __init__(self, folder, at_once=1, codes=(), before=lambda running: None):
    self.at_once, self._before = at_once, before
    self._store = SweepStore(str(folder))
    self._codes = {name: list(ends) for name, ends in dict(codes).items()}
    self.started, self.done, self.logs = [], [], []
    self._running = []

  def submit(self, name, command, log):
    assert command == ["run", f"--points={name}"]
    self._running.append(name)
    assert len(self._running) <= self.at_once
    self.started.append(name)
    self.logs.append(log)

  def wait(self, seconds):
    self._before(self._running)
    if self._running:
      name = self._running.pop(0)
      return {name: self._end(name)}
    return {}

  def _end(self, name):
    if self._codes.get(name):
      return self._codes[name].pop(0)
    with contextlib.suppress(UserError), self._store.lock(name).hold():
      trial = self._store.trial(name)
      if trial.state != DONE:
        finish(self._store, trial)
        self.done.append(name)
    return 0

  def stop(self):
    pytest.fail("it was stopped")


def finish(store, trial):
  store.finish(trial, DONE, result={"loss": loss_of(trial.bindings)})


def run(folder, points=None, engine=(), **options):
  """Runs a sweep; returns it and its engine."""
  engine = Engine(folder, **dict(engine))
  sweep = make_sweep(engine=engine, **options)
  refreshes = []
  points = sweep.points if points is None else sweep.points[:points]
  store = SweepStore(str(folder))
  sweep.run(store, points, ["run"], refreshes.append)
  assert len(refreshes) == 1 + len(engine.started)
  return sweep, engine


@pytest.mark.parametrize("at_once", [1, 4])
def test_every_point_runs_once_in_the_order_of_the_grid(tmp_path, at_once):
  options = {"tuned": False, "engine": {"at_once": at_once}}
  sweep, engine = run(tmp_path, **options)
  assert engine.done == [point.name for point in sweep.points]
  assert engine.started == engine.done
  log = SweepStore(str(tmp_path)).log
  assert engine.logs == [log(name) for name in engine.done]
  _, engine = run(tmp_path, **options)
  assert engine.started == []


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_point_reaches_its_optimum(tmp_path, at_once):
  sweep, engine = run(tmp_path, engine={"at_once": at_once})
  assert len(set(engine.done)) == len(engine.started)
  trials = SweepStore(str(tmp_path)).trials()
  for point in sweep.points:
    best = OPTIMUM[point.bindings["W"]] / point.bindings["E"]
    assert sweep.optimum(point, trials) == best
    assert {best / 2, best, best * 2} <= set(sweep.losses(point, trials))


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("at_once", [1, 3])
def test_drivers_that_share_a_directory_run_each_trial_once(
  tmp_path, tuned, at_once
):
  barrier, engines = threading.Barrier(2), []

  def in_step(running):
    with contextlib.suppress(threading.BrokenBarrierError):
      barrier.wait(1)  # until one has ended

  def drive():
    engine = {"at_once": at_once, "before": in_step}
    engines.append(run(tmp_path, tuned=tuned, engine=engine)[1])

  threads = [threading.Thread(target=drive) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  trials = SweepStore(str(tmp_path)).trials()
  ended = [name for name, trial in trials.items() if trial.state == DONE]
  assert sorted(engines[0].done + engines[1].done) == ended  # none twice
  sweep = make_sweep(tuned)
  for point in sweep.points:
    assert sweep.next_trials(point, trials) == []


@pytest.fixture
def elsewhere(tmp_path):
  """Locks and records trials of the first point as another process does."""
  (point, *_), store = make_sweep().points, SweepStore(str(tmp_path))

  def trial(value):
    bindings = {**point.bindings, "LR": value}
    return Trial(point_name(bindings), point.name, bindings)

  store.at = trial
  return store


def test_point_started_elsewhere_is_waited_for(tmp_path, elsewhere):
  trial = elsewhere.at(1.6)
  lock = elsewhere.lock(trial.name)
  elsewhere.start(trial)
  lock.acquire()

  def before(running):
    if elsewhere.trial(trial.name).state != DONE:
      assert not running
      finish(elsewhere, trial)
      lock.release()

  _, engine = run(tmp_path, 1, engine={"before": before})
  assert engine.done == [elsewhere.at(value).name for value in (0.8, 0.4, 0.2)]


def test_interrupted_first_trial_is_resumed(tmp_path, elsewhere):
  elsewhere.start(elsewhere.at(1.6))
  _, engine = run(tmp_path, 1)
  assert engine.started[0] == elsewhere.at(1.6).name


def test_trial_given_up_elsewhere_is_taken_over(tmp_path, elsewhere):
  trial, polls = elsewhere.at(0.4), []
  elsewhere.start(trial)
  lock = elsewhere.lock(trial.name)
  lock.acquire()

  def before(running):
    polls.append(list(running))
    if len(polls) == 3:
      lock.release()

  _, engine = run(tmp_path, 1, engine={"before": before})
  assert trial.name in engine.done and polls[:3] == [[]] * 3


@pytest.mark.parametrize(
  "codes, state, locked",
  [
    ([1], FAILED, False),
    ([-9], FAILED, False),
    ([0, 0], DONE, False),
    ([0, 0, 0], FAILED, False),
    ([1], DONE, True),
    ([1, -9], DONE, True),
    ([1, 1, 1], FAILED, True),
  ],
)
def test_process_without_outcome_has_failed(
  tmp_path, elsewhere, codes, state, locked
):
  """Unless it is locked, as when its machine is gone and its lock is not."""
  trial, ends = elsewhere.at(0.4), list(codes)
  lock = elsewhere.lock(trial.name)

  def before(running):
    if running and ends and locked:
      ends.pop()
      lock.acquire()  # just after it started here
    elif not running:
      lock.release()

  engine = {"before": before, "codes": {trial.name: codes}}
  _, engine = run(tmp_path, 1, engine=engine)
  assert engine.started.count(trial.name) == len(codes) + (state == DONE)
  outcome = elsewhere.trial(trial.name)
  assert outcome.state == state
  if state == FAILED:
    how = "killed by SIGKILL" if codes[-1] == -9 else f"code {codes[-1]}"
    assert how in outcome.reason and elsewhere.log(trial.name) in outcome.reason


def test_trial_that_ends_during_a_check_is_not_started_again(
  tmp_path, monkeypatch
):
  store = SweepStore(str(tmp_path))
  (point,) = grid_points(GRID[:1])
  trial = Trial(point.name, point.name, point.bindings)
  lock, read, checks = store.lock(trial.name), SweepStore.trials, []
  lock.acquire()
  store.start(trial)

  def trials(self):
    known = read(self)
    checks.append([t.state for t in known.values()])
    finish(store, trial)
    lock.release()
    return known

  monkeypatch.setattr(SweepStore, "trials", trials)
  _, engine = run(tmp_path, tuned=False, grid=GRID[:1])
  assert engine.started == [] and checks == [["running"], ["done"]]


def test_running_trials_count_towards_most_trials(tmp_path):
  for most in (1, 2, 3, 4, 5):
    options = {"grid": GRID[:1], "most": most, "start": 0.05}
    _, engine = run(tmp_path / str(most), engine={"at_once": 3}, **options)
    assert len(engine.done) == most


def test_trials_without_tuning_are_kept_apart(tmp_path):
  assert len(run(tmp_path, tuned=False)[1].done) == 9
  assert len(run(tmp_path)[1].done) == 27
  assert run(tmp_path, tuned=False)[1].started == []


def test_names_too_long_for_a_folder_are_refused():
  assert grid_points([{"WEIGHTS": "x" * 202}])
  for value in ("x" * 203, "é" * 102):
    with pytest.raises(UserError, match="shorter values"):
      grid_points([{"WEIGHTS": value}])
