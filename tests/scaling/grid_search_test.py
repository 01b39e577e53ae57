"""The grid of a sweep, and the search for the best value of a macro."""

import itertools
import math
import re

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.sweep import (
  GridSearch,
  grid_points,
  nearest_first,
  select_points,
)
from nfnets_tf.scaling.sweep_store import point_name

MODELS, EPOCHS = ("F0", "F1", "F3", "F7+"), (0.25, 1, 8)
LADDER = [{"VARIANT": m, "EPOCHS": e} for m in MODELS for e in EPOCHS]


def test_name_states_values_in_order():
  assert point_name(LADDER[0]) == "VARIANT=F0,EPOCHS=0.25"
  assert point_name({"A": "F7+", "B": 1e-05}) == "A=F7+,B=1e-05"
  assert point_name({"A": -0.5, "B": True}) == "A=-0.5,B=True"


@pytest.mark.parametrize(
  "value", ["a/b", "../x", "a b*?[c]", "x:y|z", "\n", "~", (1, "a"), None, "é"]
)
def test_name_is_valid_on_any_file_system(value):
  name = point_name({"train/pipeline.Split.x": value})
  assert re.fullmatch(r"train-pipeline\.Split\.x=[\w.+-]*", name)


def test_points_keep_the_order_of_the_grid():
  points = grid_points(LADDER)
  assert [point.bindings for point in points] == LADDER
  assert points[0].bindings is not LADDER[0]


def test_points_that_would_share_a_directory_are_refused():
  for grid in ([{"A": 1}, {"A": 1}], [{"A": "a b"}, {"A": "a/b"}]):
    with pytest.raises(UserError, match="2 points .* 'A=(1|a-b)'"):
      grid_points(grid)
  assert len(grid_points([{"A": 0.5}, {"A": -0.5}, {"A": 1}])) == 3


def test_nearest_points_have_least_manhattan_distance():
  points = grid_points(LADDER)
  places = list(itertools.product(range(4), range(3)))

  def distance(a, b):
    return sum(abs(x - y) for x, y in zip(places[a], places[b]))

  for here, point in enumerate(points):
    order = [points.index(other) for other in nearest_first(points, point)]
    assert sorted([*order, here]) == list(range(12))
    # Ties are in the order of the grid.
    assert order == sorted(order, key=lambda o, h=here: (distance(h, o), o))


def test_nearest_points_need_not_set_the_same_macros():
  points = grid_points([{"A": 1}, {"A": 2, "B": [1]}, {"A": 3, "B": [2]}])
  assert nearest_first(points, points[2]) == [points[1], points[0]]


def test_shares_partition_the_points():
  points = grid_points(LADDER)
  for n in range(1, 16):
    shares = [select_points(points, f"{k}/{n}") for k in range(1, n + 1)]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    names = sorted(point.name for share in shares for point in share)
    assert names == sorted(point.name for point in points)
  expected = [points[1], points[6], points[11]]
  assert select_points(points, "2/5") == expected
  for number, point in enumerate(points, 1):
    assert select_points(points, str(number)) == [point]


@pytest.mark.parametrize("given", ["0", "13", "0/3", "4/3", "1/0", "13/12"])
def test_numbers_out_of_range_are_refused(given):
  with pytest.raises(UserError, match=f"--points={given} .* from 1 to 12"):
    select_points(grid_points(LADDER), given)


def make_search(both_sides=True, most_trials=99, factor=2.0, start=0.1):
  return GridSearch(
    macro="LR",
    start=start,
    factor=factor,
    both_sides=both_sides,
    most_trials=most_trials,
  )


def run_search(search, loss_of, start=None):
  """Tries one value after the other; returns {value: loss} in their order."""
  losses = {}
  while values := search.next_values(losses, start):
    assert not set(values) & set(losses), "a value was tried twice"
    losses[values[0]] = loss_of(values[0])
    assert len(losses) < 100
  return losses


def place(value, search):
  """Returns the number of steps on the grid from the start."""
  steps = math.log(value / search.start, search.factor)
  assert abs(steps - round(steps)) < 1e-3
  return round(steps)


def unimodal_curves():
  """Yields (loss of a place on the grid, the best place), at random."""
  r = np.random.default_rng(0)
  for _ in range(100):
    best = int(r.integers(-12, 13))
    rises = {side: np.cumsum(r.uniform(0.1, 1, 60)) for side in (-1, 1)}

    def loss_of(at, best=best, rises=rises):
      return rises[1 if at > best else -1][abs(at - best)] if at != best else 0

    yield loss_of, best


@pytest.mark.parametrize("factor", [2.0, 1.5, 10 ** (1 / 3)])
def test_search_finds_optimum_of_exhaustive_search(factor):
  search = make_search(factor=factor)
  for loss_of, best in unimodal_curves():
    assert best == min(range(-30, 31), key=loss_of)  # exhaustive
    losses = run_search(search, lambda v, f=loss_of: f(place(v, search)))
    places = [place(v, search) for v in losses]
    assert place(search.best(losses), search) == best
    assert {best - 1, best + 1} <= set(places)
    assert len(set(places)) == len(places)
    # The start, the way to the optimum and one beyond it, and the lower side
    # of the start, which was tried first.
    assert len(losses) == 2 + abs(best) + (best >= 0)


def test_search_does_not_depend_on_the_order_in_which_trials_end():
  r = np.random.default_rng(1)
  for loss_of, best in unimodal_curves():
    search, losses, running = make_search(), {}, set()
    while running := set(search.next_values(losses)) | running:
      ended = r.choice(sorted(running))
      running.discard(ended)
      losses[ended] = loss_of(place(ended, search))
    assert place(search.best(losses), search) == best


def test_search_from_the_optimum_takes_three_trials():
  search = make_search()
  losses = run_search(search, lambda v: abs(math.log(v / 0.8)), start=0.8)
  assert list(losses) == [0.8, 0.4, 1.6] and search.best(losses) == 0.8
  assert search.next_values({0.3: 1.0}) == [0.15, 0.6]  # of another grid


def test_one_sided_search_only_descends():
  search = make_search(both_sides=False)
  losses = run_search(search, lambda v: abs(math.log(v / 0.8)), start=0.8)
  assert list(losses) == [0.8, 0.4]
  for loss_of, best in unimodal_curves():
    losses = run_search(search, lambda v, f=loss_of: f(place(v, search)))
    assert place(search.best(losses), search) == min(best, 0)
    assert len(losses) == 2 - min(best, 0)


@pytest.mark.parametrize("both_sides", [True, False])
def test_diverged_values_are_worst(both_sides):
  search = make_search(both_sides)
  losses = run_search(
    search, lambda v: math.inf if v > 0.03 else abs(v - 0.0125)
  )
  assert list(losses) == [0.1, 0.05, 0.025, 0.0125, 0.00625]
  assert search.best(losses) == 0.0125


def test_search_descends_while_all_diverge():
  search = make_search(most_trials=4)
  losses = run_search(search, lambda v: math.inf)
  assert list(losses) == [0.1, 0.05, 0.025, 0.0125]
  assert search.best(losses) is None


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_search_respects_most_trials(most):
  search, losses = make_search(most_trials=most), {}
  while values := search.next_values(losses):
    assert len(losses) + len(values) <= most
    losses.update((v, -v) for v in values)  # higher is always better
  assert len(losses) == most and search.best(losses) == max(losses)


def test_lower_value_wins_a_tie():
  assert make_search().best({0.2: 1.0, 0.1: 1.0, 0.4: 2.0}) == 0.1
  assert make_search().best({0.1: 2.0, 0.2: 1.0, 0.4: 1.0}) == 0.2


@pytest.mark.parametrize("start", [0.1, 0.3, 1 / 3, 1.6, 7e-6, 0.1234567])
@pytest.mark.parametrize("factor", [2.0, 3.0, 10.0, 1.25])
def test_up_and_down_again_gives_the_same_number(start, factor):
  """So that no place has two directories; 0.1 / 3 * 3 != 0.1."""
  search = make_search(factor=factor, start=start)
  lower, upper = search.next_values({start: 1.0})
  expected = pytest.approx((start / factor, start * factor), rel=1e-5)
  assert (lower, upper) == expected
  for side in (lower, upper):
    # As seen from there, the start has been tried.
    (beyond,) = search.next_values({start: 1.0, side: 0.5})
    assert side in search.next_values({beyond: 1.0})
    assert float(f"{start:.6g}") in search.next_values({side: 1.0})


@pytest.mark.parametrize(
  "name, value",
  [
    *(("start", start) for start in (0, math.inf, math.nan, "0.1")),
    ("factor", 1),
    ("most_trials", 0),
    ("most_trials", 2.5),
  ],
)
def test_invalid_search_is_refused(name, value):
  message = re.escape(f"sweep.GridSearch.{name} = {value!r} is invalid")
  with pytest.raises(UserError, match=message):
    make_search(**{name: value})
