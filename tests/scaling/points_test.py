import itertools
import re

import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import points
from nfnets_tf.scaling.points import Point
from nfnets_tf.scaling.sweep import Sweep
from nfnets_tf.scaling.tuning import GridSearch

MODELS, EPOCHS = ("F0", "F1", "F3", "F7+"), (0.25, 1, 8)
GRID = [{"VARIANT": m, "EPOCHS": e} for m in MODELS for e in EPOCHS]


def test_a_name_tells_the_values_in_order():
  assert points.name_of(GRID[0]) == "VARIANT=F0,EPOCHS=0.25"
  assert points.name_of({"A": "F7+", "B": 1e-05}) == "A=F7+,B=1e-05"
  assert points.name_of({"A": -0.5, "B": True}) == "A=-0.5,B=True"


@pytest.mark.parametrize(
  "value", ["a/b", "../x", "a b*?[c]", "x:y|z", "\n", "~", (1, "a"), None, "é"]
)
def test_a_name_is_that_of_a_folder_on_any_file_system(value):
  name = points.name_of({"train/pipeline.Split.x": value})
  assert re.fullmatch(r"train-pipeline\.Split\.x=[\w.+-]*", name)


def test_points_that_would_share_a_folder_are_refused():
  for grid in ([{"A": 1}, {"A": 1}], [{"A": "a b"}, {"A": "a/b"}]):
    with pytest.raises(UserError, match="two points .* 'A=(1|a-b)'"):
      points.cells_of(grid)
  assert len(points.cells_of([{"A": 0.5}, {"A": -0.5}, {"A": 1}])) == 3


def test_a_sweep_without_points_is_refused():
  with pytest.raises(UserError, match="no points; bind an axis"):
    points.cells_of([])


def test_cells_are_the_grids_points_in_their_order():
  cells = points.cells_of(GRID)
  assert [cell.bindings for cell in cells] == GRID
  assert all(cell.name == cell.cell for cell in cells)
  assert cells[0].bindings is not GRID[0]


def test_a_trial_is_a_point_of_its_cell():
  cell = points.cells_of(GRID)[4]
  trial = points.trial_of(cell, "PEAK_LR", 0.05)
  assert trial == Point(
    "VARIANT=F1,EPOCHS=1,PEAK_LR=0.05",
    {"VARIANT": "F1", "EPOCHS": 1, "PEAK_LR": 0.05},
    "VARIANT=F1,EPOCHS=1",
  )
  assert cell.bindings == GRID[4]
  for macro in ("PEAK_LR", "a/sgd.SGD.momentum"):
    trial = points.trial_of(cell, macro, 1e-05)
    assert trial.name == points.trial_prefix(cell, macro) + "1e-05"


def test_the_nearest_are_those_of_the_least_manhattan_distance():
  cells = points.cells_of(GRID)
  places = list(itertools.product(range(4), range(3)))

  def distance(a, b):
    (x, y), (u, v) = places[a], places[b]
    return abs(x - u) + abs(y - v)

  for here, cell in enumerate(cells):
    order = [cells.index(other) for other in points.nearest_first(cells, cell)]
    assert sorted([*order, here]) == list(range(12))
    far = [distance(here, other) for other in order]
    assert far == sorted(far)
    for a, b in zip(order, order[1:]):
      assert distance(here, a) < distance(here, b) or a < b  # as in the grid


def test_cells_need_not_set_the_same_macros():
  grid = [{"A": 1}, {"A": 2, "B": [1]}, {"A": 3, "B": [2]}]
  cells = points.cells_of(grid)
  assert points.nearest_first(cells, cells[2]) == [cells[1], cells[0]]


def test_shares_cover_all_points_exactly_once():
  cells = points.cells_of(GRID)
  for n in range(1, 16):
    shares = [points.select_cells(cells, f"{k}/{n}") for k in range(1, n + 1)]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(sum(shares, [])) == sorted(cells)
  share = points.select_cells(cells, "2/5")
  assert share == [cells[1], cells[6], cells[11]]


def test_a_number_is_one_point():
  cells = points.cells_of(GRID)
  for number, cell in enumerate(cells, 1):
    assert points.select_cells(cells, str(number)) == [cell]


@pytest.mark.parametrize("given", ["0", "13", "0/3", "4/3", "1/0", "13/12"])
def test_numbers_that_no_point_has_are_refused(given):
  with pytest.raises(UserError, match=f"--points={given} .* from 1 to 12"):
    points.select_cells(points.cells_of(GRID), given)


def sweep_of(macro):
  """A sweep over the grid, in which a macro is tuned."""
  tuning = GridSearch(
    macro=macro, start=0.4, factor=2, both_sides=True, most_trials=9
  )
  return Sweep(
    grid=GRID,
    tuning=tuning if macro else None,
    engine=None,
    loss="loss",
    lease_seconds=60,
    poll_seconds=1,
    price=None,
    report=None,
  )


@pytest.mark.parametrize("macro", ["PEAK_LR", "train/sgd.SGD.momentum"])
@pytest.mark.parametrize("value", [1e-05, 0.30000000000000004, 1.6, 2e22])
def test_a_trial_is_found_by_its_name(macro, value):
  sweep = sweep_of(macro)
  for cell in sweep.cells:
    trial = points.trial_of(cell, macro, value)
    assert sweep.find(trial.name) == trial


def test_a_point_of_the_grid_is_found_by_its_name():
  sweep = sweep_of(None)
  assert [sweep.find(cell.name) for cell in sweep.cells] == sweep.cells
  first = sweep.cells[0]
  records = {first.name: {"cell": first.name, "bindings": first.bindings}}
  assert sweep.optimum(first, records) is None  # nothing is tuned


CELL = "VARIANT=F0,EPOCHS=0.25"


@pytest.mark.parametrize(
  "name",
  ["x", "", CELL, f"{CELL},EMA=0.1", "VARIANT=F9,EPOCHS=1,PEAK_LR=0.1"]
  + [f"{CELL},PEAK_LR={v}" for v in ("", "x", "inf", "nan", "0.0", "1e-5")],
)
def test_what_is_no_name_of_a_point_is_told(name):
  with pytest.raises(UserError) as error:
    sweep_of("PEAK_LR").find(name)
  assert str(error.value) == (
    f"--points={name} is no point of the sweep; expected 'list', 'plan',"
    " 'left', 'failed', a number from 1 to 12, a share such as 1/4, or a name"
    f" such as '{CELL},PEAK_LR=0.4'."
  )
