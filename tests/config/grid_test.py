import itertools

import pytest

from nfnets_tf.config import Configuration, grid
from nfnets_tf.config.bindings import Bindings
from nfnets_tf.config.grid import read_grid
from nfnets_tf.errors import UserError

RUN = ["gin/quickstart.gin", "gin/overlays/smoke.gin"]
TUNED = "sweep.Sweep.tuning = @sweep.GridSearch()"


def test_last_axis_varies_fastest():
  points = grid(A=(1, 2), B=["x", "y", "z"], C=(None,))
  expected = [
    {"A": a, "B": b, "C": None} for a in (1, 2) for b in ("x", "y", "z")
  ]
  assert points == expected
  assert [list(point) for point in points] == [["A", "B", "C"]] * 6


def test_axes_are_sorted_by_name():
  given = {"B": (1, 2), "A": (3, 4), "C": (5,)}
  for names in itertools.permutations(given):
    assert grid(**{n: given[n] for n in names}) == [
      {"A": a, "B": b, "C": 5} for a in (3, 4) for b in (1, 2)
    ]


def test_axis_may_set_several_macros_together():
  pairs = ({"VARIANT": "F0", "BATCH_SIZE": 8}, {"VARIANT": "F1", "SEED": 3})
  assert grid(model=pairs, EPOCHS=(1, 2)) == [
    {"EPOCHS": e, **pair} for e in (1, 2) for pair in pairs
  ]
  assert grid(A=({"A": 1}, 2)) == [{"A": 1}, {"A": 2}]


def test_two_axes_may_not_set_the_same_macro():
  message = "two axes of config.grid set the same macro"
  with pytest.raises(UserError, match=message):
    grid(model=({"SEED": 1},), SEED=(1, 2))
  with pytest.raises(UserError, match=message):
    grid(SEED=(1, 2), z=({"A": 1}, {"SEED": 1}))


@pytest.mark.parametrize("values", [(), [], 3, "F0", {"A": 1}, None])
def test_axis_without_values_is_refused(values):
  with pytest.raises(UserError) as error:
    grid(EPOCHS=values)
  message = f"config.grid.EPOCHS = {values!r} is invalid; expected a list"
  assert str(error.value).startswith(message)


@pytest.mark.parametrize("value", [{}, {3: 1}, {"A B": 1}, {"A": 1, "": 2}])
def test_invalid_macros_are_refused(value):
  with pytest.raises(UserError) as error:
    grid(model=({"A": 1}, value))
  message = f"config.grid.model: a value = {value!r} is invalid; expected {{mac"
  assert str(error.value).startswith(message)
  assert grid(model=({"a/b.C_1.d": 1},)) == [{"a/b.C_1.d": 1}]


def test_grid_without_axes_has_no_points():
  assert grid() == [] == read_grid(bindings_of("EPOCHS = 1"))


def bindings_of(text):
  bindings = Bindings()
  bindings.read_text(text, "a.gin")
  return bindings


def test_grid_is_read_from_bindings():
  bindings = bindings_of("""config.grid.EPOCHS = (0.25, 1)
EPOCHS = 3
config.grid.model = [{'VARIANT': 'F7+', 'X': [1, 2]}]
sweep.Sweep.grid = @config.grid()
myconfig.grid.SEED = (1, 2)
""")
  assert read_grid(bindings) == [
    {"EPOCHS": e, "VARIANT": "F7+", "X": [1, 2]} for e in (0.25, 1)
  ]


@pytest.mark.parametrize("text", ["%LIST", "(@a.b, @c.d)", "[{'A': %B}]"])
def test_values_must_be_literals(text):
  with pytest.raises(UserError) as error:
    read_grid(bindings_of(f"config.grid.EPOCHS = {text}"))
  message = f"config.grid.EPOCHS = {text} is invalid; expected a list of num"
  assert str(error.value).startswith(message)


def sweep_of(*params):
  return Configuration([*RUN, "gin/sweeps/base.gin"], params)


def test_configuration_of_a_point_is_that_of_a_single_run():
  sweep = sweep_of("config.grid.EPOCHS = (1, 2)", "config.grid.SEED = (3, 4)")
  assert sweep.is_sweep
  alone = sweep.at({"EPOCHS": 2, "SEED": 4})
  assert not alone.is_sweep and alone.build_sweep() is None
  for word in ("weep", "tuning", "engines", "config.grid", "GridSearch"):
    assert word not in alone.text, word
  by_hand = Configuration(
    RUN, ["EPOCHS = 2", "SEED = 4", "train.TrainJob.export = None"]
  )
  assert alone.statements == by_hand.statements
  assert alone.text == by_hand.text
  assert "EPOCHS" in sweep.text and sweep.is_sweep  # as it was
  assert alone.build_job().seed == 4


def test_sweep_is_checked_at_its_first_point():
  sweep = sweep_of("config.grid.EPOCHS = (7, 2)", "config.grid.SEED = (3, 4)")
  assert sweep.statements["EPOCHS"] == "7" and sweep.build_job().seed == 3
  points = sweep.build_sweep().points
  grid = [{"EPOCHS": e, "SEED": s} for e in (7, 2) for s in (3, 4)]
  assert [point.bindings for point in points] == grid


def test_tuned_macro_is_part_of_the_point():
  sweep = sweep_of("config.grid.EPOCHS = (1, 2)", TUNED, "PEAK_LR = 0.3")
  built = sweep.build_sweep()
  (trial,) = built.next_trials(built.points[1], {})
  assert trial.bindings == {"EPOCHS": 2, "PEAK_LR": 0.3}
  alone = sweep.at({**trial.bindings, "PEAK_LR": 0.6})
  assert alone.statements["PEAK_LR"] == "0.6" and "tuning" not in alone.text


@pytest.mark.parametrize(
  "axis", ["EPOCH = (1, 2)", "model = ({'EPOCH': 1, 'SEED': 2},)"]
)
def test_unused_axis_is_refused(axis):
  with pytest.raises(UserError) as error:
    sweep_of(f"config.grid.{axis}")
  assert str(error.value) == (
    "config.grid: EPOCH is set, but nothing uses it; did you mean 'EPOCHS'?"
  )


@pytest.mark.parametrize(
  "binding, engine",
  [
    ("sweep.Sweep.engine = @engines.Ray()", "Ray"),
    ("engines.LocalProcesses.at_once = 3", "LocalProcesses"),
  ],
)
def test_engine_is_chosen_by_one_binding(binding, engine):
  sweep = sweep_of("config.grid.EPOCHS = (1, 2)", binding).build_sweep()
  assert type(sweep.engine).__name__ == engine


def test_sweep_without_axes_is_refused():
  with pytest.raises(UserError, match="no points; bind an axis, such as"):
    sweep_of().build_sweep()
