import itertools

import pytest

from nfnets_tf.config import Configuration, axes
from nfnets_tf.errors import UserError

RUN = ["gin/quickstart.gin", "gin/overlays/smoke.gin"]
TUNED = "sweep.Sweep.tuning = @tuning.GridSearch()"


def test_the_last_axis_varies_fastest():
  points = axes.grid(A=(1, 2), B=["x", "y", "z"], C=(None,))
  expected = [
    {"A": a, "B": b, "C": None} for a in (1, 2) for b in ("x", "y", "z")
  ]
  assert points == expected
  assert [list(point) for point in points] == [["A", "B", "C"]] * 6


def test_the_order_in_which_axes_are_given_does_not_matter():
  given = {"B": (1, 2), "A": (3, 4), "C": (5,)}
  for names in itertools.permutations(given):
    assert axes.grid(**{n: given[n] for n in names}) == [
      {"A": a, "B": b, "C": 5} for a in (3, 4) for b in (1, 2)
    ]


def test_an_axis_may_set_several_macros_together():
  pairs = ({"VARIANT": "F0", "BATCH_SIZE": 8}, {"VARIANT": "F1", "SEED": 3})
  assert axes.grid(model=pairs, EPOCHS=(1, 2)) == [
    {"EPOCHS": e, **pair} for e in (1, 2) for pair in pairs
  ]
  assert axes.grid(A=({"A": 1}, 2)) == [{"A": 1}, {"A": 2}]


def test_what_one_axis_sets_no_other_may():
  message = "two axes of config.grid set the same macro"
  with pytest.raises(UserError, match=message):
    axes.grid(model=({"SEED": 1},), SEED=(1, 2))
  with pytest.raises(UserError, match=message):
    axes.grid(SEED=(1, 2), z=({"A": 1}, {"SEED": 1}))


@pytest.mark.parametrize("values", [(), [], 3, "F0", {"A": 1}, None])
def test_an_axis_is_a_list_of_at_least_one_value(values):
  with pytest.raises(UserError) as error:
    axes.grid(EPOCHS=values)
  assert str(error.value) == (
    f"config.grid.EPOCHS = {values!r} cannot be used; expected a list of at"
    " least one value, such as (0.25, 0.5, 1)."
  )


@pytest.mark.parametrize("value", [{}, {3: 1}, {"A B": 1}, {"A": 1, "": 2}])
def test_what_sets_several_macros_names_them(value):
  with pytest.raises(UserError) as error:
    axes.grid(model=({"A": 1}, value))
  assert str(error.value) == (
    f"config.grid.model holds {value!r}, which cannot be used; expected"
    " {macro: value}, such as {'VARIANT': 'F0', 'EPOCHS': 1}."
  )
  assert axes.grid(model=({"a/b.C_1.d": 1},)) == [{"a/b.C_1.d": 1}]


def test_no_axes_no_points():
  assert axes.grid() == [] == axes.read_grid({"EPOCHS": "1"})


def test_a_grid_is_read_from_a_listing():
  statements = {
    "config.grid.EPOCHS": "(0.25, 1)",
    "EPOCHS": "3",
    "config.grid.model": "[{'VARIANT': 'F7+', 'X': [1, 2]}]",
    "sweep.Sweep.grid": "@config.grid()",
    "myconfig.grid.SEED": "(1, 2)",
  }
  assert axes.read_grid(statements) == [
    {"EPOCHS": e, "VARIANT": "F7+", "X": [1, 2]} for e in (0.25, 1)
  ]


@pytest.mark.parametrize("right", ["%LIST", "(@a.b, @c.d)", "[f(1)]", "", "(1"])
def test_values_that_are_not_plain_are_told(right):
  with pytest.raises(UserError) as error:
    axes.read_grid({"config.grid.EPOCHS": right})
  assert str(error.value) == (
    f"config.grid.EPOCHS = {right} cannot be used; expected a list of numbers,"
    " strings or other plain values, such as (0.25, 0.5, 1)."
  )


def sweep_of(*params):
  return Configuration([*RUN, "gin/sweeps/base.gin"], params)


def test_a_point_alone_has_nothing_of_the_sweep():
  """So that it is the run that one would do by hand."""
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


def test_a_sweeps_own_configuration_is_that_of_its_first_point():
  sweep = sweep_of("config.grid.EPOCHS = (7, 2)", "config.grid.SEED = (3, 4)")
  assert sweep.statements["EPOCHS"] == "7" and sweep.build_job().seed == 3
  cells = sweep.build_sweep().cells
  points = [{"EPOCHS": e, "SEED": s} for e in (7, 2) for s in (3, 4)]
  assert [cell.bindings for cell in cells] == points


def test_what_is_tuned_is_one_more_macro_of_the_point():
  sweep = sweep_of("config.grid.EPOCHS = (1, 2)", TUNED, "PEAK_LR = 0.3")
  (trial,) = sweep.build_sweep().trials(sweep.build_sweep().cells[1], {})
  assert trial.bindings == {"EPOCHS": 2, "PEAK_LR": 0.3}
  alone = sweep.at({**trial.bindings, "PEAK_LR": 0.6})
  assert alone.statements["PEAK_LR"] == "0.6" and "tuning" not in alone.text


@pytest.mark.parametrize(
  "axis", ["EPOCH = (1, 2)", "model = ({'EPOCH': 1, 'SEED': 2},)"]
)
def test_an_axis_that_nothing_reads_names_the_nearest(axis):
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
def test_an_engine_is_chosen_by_one_binding(binding, engine):
  sweep = sweep_of("config.grid.EPOCHS = (1, 2)", binding).build_sweep()
  assert type(sweep.engine).__name__ == engine


def test_a_sweep_without_axes_is_refused():
  with pytest.raises(UserError, match="no points; bind an axis, such as"):
    sweep_of().build_sweep()
