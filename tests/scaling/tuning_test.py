import math

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.board import DONE, FAILED
from nfnets_tf.scaling.sweep import Sweep
from nfnets_tf.scaling.tuning import GridSearch


def search_with(both_sides=True, most_trials=99, factor=2.0, start=0.1):
  return GridSearch(
    macro="PEAK_LR",
    start=start,
    factor=factor,
    both_sides=both_sides,
    most_trials=most_trials,
  )


def run(search, loss_of, start=None):
  """Tries one value after the other; returns {value: loss} in their order."""
  losses = {}
  while left := search.next_values(losses, start):
    assert not set(left) & set(losses), "a value was tried twice"
    losses[left[0]] = loss_of(left[0])
    assert len(losses) < 100
  return losses


def place(value, search):
  """The number of steps on the grid from the start, and that it is one."""
  steps = math.log(value / search.start, search.factor)
  assert abs(steps - round(steps)) < 1e-3
  return round(steps)


def unimodal_curves():
  """Random losses by place on the grid; (loss of a place, the best place)."""
  r = np.random.default_rng(0)
  for _ in range(200):
    best = int(r.integers(-12, 13))
    rises = {side: np.cumsum(r.uniform(0.1, 1, 60)) for side in (-1, 1)}

    def loss_of(at, best=best, rises=rises):
      return rises[1 if at > best else -1][abs(at - best)] if at != best else 0

    yield loss_of, best


@pytest.mark.parametrize("factor", [2.0, 1.5, 10 ** (1 / 3)])
def test_it_finds_what_an_exhaustive_search_finds_in_few_trials(factor):
  search = search_with(factor=factor)
  for loss_of, best in unimodal_curves():
    assert best == min(range(-30, 31), key=loss_of)  # exhaustive
    losses = run(search, lambda v, f=loss_of: f(place(v, search)))
    places = [place(v, search) for v in losses]
    assert place(search.best(losses), search) == best
    assert len(set(places)) == len(places) and not search.is_edge(losses)
    # The start, the way to the optimum and one beyond it, and the lower side
    # of the start, which was tried first.
    assert len(losses) == 2 + abs(best) + (best >= 0)


def test_the_order_in_which_trials_end_does_not_matter():
  r = np.random.default_rng(1)
  for loss_of, best in unimodal_curves():
    search, losses, running = search_with(), {}, set()
    while left := set(search.next_values(losses)) | running:
      running = left
      ended = r.choice(sorted(running))
      running.discard(ended)
      losses[ended] = loss_of(place(ended, search))
    assert place(search.best(losses), search) == best


def test_from_the_right_neighbour_it_takes_three_trials():
  search = search_with()
  losses = run(search, lambda v: abs(math.log(v / 0.8)), start=0.8)
  assert list(losses) == [0.8, 0.4, 1.6] and search.best(losses) == 0.8
  assert search.next_values({0.3: 1.0}) == [0.15, 0.6]  # of another grid


def test_one_sided_it_takes_two_where_the_start_is_best():
  search = search_with(both_sides=False)
  losses = run(search, lambda v: abs(math.log(v / 0.8)), start=0.8)
  assert list(losses) == [0.8, 0.4] and search.best(losses) == 0.8
  assert search.is_edge(losses) and search.next_values({0.8: 1.0}) == [0.4]


def test_one_sided_it_finds_the_best_of_the_start_and_below():
  search = search_with(both_sides=False)
  for loss_of, best in unimodal_curves():
    losses = run(search, lambda v, f=loss_of: f(place(v, search)))
    assert place(search.best(losses), search) == min(best, 0)
    assert len(losses) == 2 - min(best, 0)


@pytest.mark.parametrize("both_sides", [True, False])
def test_rates_that_diverge_are_worse_than_all_others(both_sides):
  search = search_with(both_sides)
  losses = run(search, lambda v: math.inf if v > 0.03 else abs(v - 0.0125))
  assert list(losses) == [0.1, 0.05, 0.025, 0.0125, 0.00625]
  assert search.best(losses) == 0.0125


def test_where_all_diverge_it_goes_down_as_long_as_it_may():
  search = search_with(most_trials=4)
  losses = run(search, lambda v: math.inf)
  assert list(losses) == [0.1, 0.05, 0.025, 0.0125]
  assert search.best(losses) is None and search.is_edge(losses)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_there_are_no_more_trials_than_allowed(most):
  search = search_with(most_trials=most)
  losses = {}
  while left := search.next_values(losses):
    assert len(losses) + len(left) <= most
    losses.update((v, -v) for v in left)  # higher is better, for ever
  assert len(losses) == most
  assert search.is_edge(losses) and search.best(losses) == max(losses)


def test_of_two_that_are_as_good_the_lower_rate_is_best():
  assert search_with().best({0.2: 1.0, 0.1: 1.0, 0.4: 2.0}) == 0.1
  assert search_with().best({0.1: 2.0, 0.2: 1.0, 0.4: 1.0}) == 0.2


def test_an_edge_is_where_a_side_was_not_tried():
  search = search_with()
  assert search.is_edge({})
  assert search.is_edge({0.1: 1.0, 0.05: 2.0})
  assert search.is_edge({0.1: 1.0, 0.2: 2.0})
  assert not search.is_edge({0.1: 1.0, 0.05: 2.0, 0.2: math.inf})


@pytest.mark.parametrize("start", [0.1, 0.3, 1 / 3, 1.6, 7e-6, 0.1234567])
@pytest.mark.parametrize("factor", [2.0, 3.0, 10.0, 1.25])
def test_up_and_down_again_ends_in_the_same_number(start, factor):
  """So no place has two folders; 0.1 / 3 · 3 is not 0.1 otherwise."""
  search = search_with(factor=factor, start=start)
  lower, upper = search.next_values({start: 1.0})
  far = pytest.approx((start / factor, start * factor), rel=1e-5)
  assert (lower, upper) == far
  for side in (lower, upper):
    # As seen from there, the start has been tried.
    (beyond,) = search.next_values({start: 1.0, side: 0.5})
    assert side in search.next_values({beyond: 1.0})
    assert float(f"{start:.6g}") in search.next_values({side: 1.0})


@pytest.mark.parametrize(
  "name, value",
  [
    ("start", 0),
    ("start", math.inf),
    ("start", math.nan),
    ("start", "0.1"),
    ("factor", 1),
    ("most_trials", 0),
    ("most_trials", 2.5),
  ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(name, value):
  with pytest.raises(UserError) as error:
    search_with(**{name: value})
  message = str(error.value)
  assert message.startswith(f"tuning.GridSearch.{name} = {value!r} cannot be")
  assert "bind it to a" in message and "\n" not in message


def sweep_over(*grid):
  return Sweep(
    grid=list(grid),
    tuning=search_with(start=0.4),
    engine=None,
    loss="loss",
    lease_seconds=60,
    poll_seconds=1,
    price=None,
    report=None,
  )


def record_of(trial, state=DONE, loss=1.0, **content):
  return {
    "state": state,
    "cell": trial.cell,
    "bindings": trial.bindings,
    "result": {"loss": loss},
    **content,
  }


def test_a_cell_begins_at_its_neighbours_optimum():
  optimum = {1: 0.4, 2: 0.2, 3: 0.1}  # by width, halved with each doubling
  grid = [{"W": w, "E": e} for w in optimum for e in (1, 2, 4)]
  sweep, records, values = sweep_over(*grid), {}, {}
  for cell in sweep.cells:
    best = optimum[cell.bindings["W"]] / cell.bindings["E"]
    assert sweep.optimum(cell, records) is None
    while trials := sweep.trials(cell, records):
      value = trials[0].bindings["PEAK_LR"]
      values.setdefault(cell.name, []).append(value)
      loss = abs(math.log2(value / best))
      records[trials[0].name] = record_of(trials[0], loss=loss)
    assert sweep.optimum(cell, records) == best
  assert {cell: tried[0] for cell, tried in values.items()} == {
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
  "broken, tried",
  [
    ({"state": FAILED}, []),
    ({"loss": math.nan}, []),
    ({"result": {"another": 1.0}}, []),
    ({"state": FAILED, "diverged": True}, [0.8]),
    ({"state": DONE, "loss": 2.0}, [0.8]),
    ({"state": DONE, "cell": "another"}, [0.2, 0.8]),
    ({"bindings": {"A": 1}}, [0.2, 0.8]),
  ],
)
def test_a_cell_in_which_something_broke_is_left_undecided(broken, tried):
  sweep = sweep_over({"A": 1}, {"A": 2})
  cell, other = sweep.cells
  (start,) = sweep.trials(cell, {})
  records = {start.name: record_of(start)}
  lower, upper = sweep.trials(cell, records)
  records[lower.name] = record_of(lower, **broken)
  found = [t.bindings["PEAK_LR"] for t in sweep.trials(cell, records)]
  assert found == tried and sweep.optimum(cell, records) is None
  # Nobody begins at what is not known.
  assert sweep.trials(other, records)[0].bindings["PEAK_LR"] == 0.4
  records[upper.name] = record_of(upper, loss=3.0)
  decided = tried == [0.8]
  assert sweep.optimum(cell, records) == (0.4 if decided else None)
