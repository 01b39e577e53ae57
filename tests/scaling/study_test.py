"""Reading a table of runs, and everything that is fitted to it."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import allocation, paper_data
from nfnets_tf.scaling.study import (
  RunColumns,
  best_rates,
  best_runs,
  fit_study,
  read_runs,
)
from tests.support.tables import fit_quickly, known_table

COLUMNS = RunColumns("flops", "loss", "net", "macs", "budget", "lr")


def table(**changes):
  content = {
    "flops": [4.0, 1.0, 2.0],
    "loss": [0.5, 0.9, 0.7],
    "net": ["a", "a", "b"],
    "macs": [10, 10, 20],
    "budget": [4, 1, 1],
    "lr": [0.1, 0.1, 0.2],
    "unused": ["x", "y", "z"],
  }
  return pd.DataFrame({**content, **changes})


def test_reads_runs_cheapest_first():
  runs, skipped = read_runs(table(), COLUMNS)
  assert list(runs["compute"]) == [1.0, 2.0, 4.0]
  assert list(runs["model"]) == ["a", "b", "a"]
  assert not skipped


@pytest.mark.parametrize(
  "column, value",
  [
    ("loss", np.nan),
    ("loss", np.inf),
    ("loss", 0.0),
    ("loss", "none"),
    ("flops", -1.0),
    ("budget", np.nan),
  ],
)
def test_skips_and_counts_unusable_rows(column, value):
  values = [value, *table()[column][1:]]
  runs, skipped = read_runs(table(**{column: values}), COLUMNS)
  assert list(runs["compute"]) == [1.0, 2.0]
  assert skipped == {"without positive numbers": 1}


def test_skips_runs_that_are_not_done():
  states = ["failed", "done", "running"]
  runs, skipped = read_runs(table(state=states), COLUMNS)
  assert list(runs["compute"]) == [1.0] and skipped == {"not done": 2}


def test_reads_empty_table():
  runs, skipped = read_runs(table().iloc[:0], COLUMNS)
  assert runs.empty and not skipped


def test_reports_missing_column():
  columns = dataclasses.replace(COLUMNS, compute="hours")
  with pytest.raises(UserError, match="no column 'hours'.* flops, loss"):
    read_runs(table(), columns)


def test_reads_table_without_rates():
  runs, _ = read_runs(table(), dataclasses.replace(COLUMNS, rate=None))
  assert len(runs) == 3 and runs["rate"].isna().all()
  assert best_rates(runs).empty


def trials(losses):
  """Runs of one model and budget at {rate: loss}, in a mixed order."""
  rows = [
    {"model": "a", "epochs": 1, "compute": 1.0, "size": 1, "rate": r, "loss": x}
    for r, x in losses.items()
  ]
  return pd.DataFrame(rows).sample(frac=1.0, random_state=0)


@pytest.mark.parametrize(
  "losses, best, edge",
  [
    ({0.1: 3, 0.2: 1, 0.4: 2}, 0.2, ""),
    ({0.1: 1, 0.2: 2, 0.4: 3}, 0.1, "lower"),
    ({0.1: 3, 0.2: 2, 0.4: 1}, 0.4, "upper"),
    ({0.1: 3}, 0.1, "only"),
  ],
)
def test_marks_best_rate_at_the_edge_of_those_tried(losses, best, edge):
  (row,) = best_rates(trials(losses)).to_dict("records")
  assert (row["rate"], row["edge"]) == (best, edge)


def test_keeps_the_best_run_of_each_model_and_budget():
  runs = pd.concat(
    [trials({0.1: 3, 0.2: 1}), trials({0.1: 5, 0.2: 6}).assign(epochs=2)]
  )
  assert sorted(best_runs(runs)["loss"]) == [1, 5]


@pytest.fixture(scope="module")
def fits():
  return fit_quickly(known_table())


def test_recovers_known_law(fits):
  assert len(fits.points) == 48  # the best rate of each
  assert fits.power.b == pytest.approx(0.15, abs=0.01)
  assert fits.exponents.p == pytest.approx(0.5, abs=0.05)
  assert fits.exponents.q == pytest.approx(0.5, abs=0.05)
  assert fits.surface.u == pytest.approx(0.3, abs=1e-3)
  assert fits.surface.v == pytest.approx(0.3, abs=1e-3)
  assert len(fits.allocation) == allocation.NUM_BUDGETS
  assert set(fits.rates["rate"]) == {0.2} and set(fits.rates["edge"]) == {""}


def test_extrapolates_the_frontier(fits):
  errors = fits.extrapolation.errors(fits.extrapolation.power)
  assert len(errors) > 3 and np.abs(errors).max() < 0.05
  assert min(fits.extrapolation.compute) >= fits.extrapolation.threshold


def test_json_has_every_coefficient_with_its_interval(fits):
  content = json.loads(json.dumps(fits.to_json()))
  for law, names in (("power_law", "ab"), ("offset_law", "abc")):
    for name in names:
      low, high = content[law][name]["interval"]
      assert low <= content[law][name]["value"] * (1 + 1e-9) and low <= high
  assert content["allocation"]["size_exponent"]["interval"]
  assert content["surface"]["u"]["interval"]
  assert content["points"] == 48


def test_describes_main_results(fits):
  lines = dict(fits.describe())
  assert "48, " in lines["points"] and lines["law"].startswith("L = ")
  assert "size ~ C^0." in lines["best size and epochs by optima"]
  assert "epochs ~ C^0." in lines["best size and epochs by surface"]
  assert "at the largest compute" in lines["extrapolation"]


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_fits_a_study_that_has_just_begun(rows):
  fits = fit_quickly(known_table(sizes=[0]).iloc[:rows])
  assert fits.exponents is None and fits.surface is None
  assert json.dumps(fits.to_json()) and fits.describe()
  assert rows == 5 or fits.power is None


def test_failed_runs_change_only_the_count_of_skipped_rows(fits):
  failed = known_table().iloc[:5].assign(loss=np.nan)
  both = fit_quickly(pd.concat([known_table(), failed]), resamples=1)
  assert both.skipped_rows == {"without positive numbers": 5}
  assert both.power.b == fits.power.b


def test_fits_the_papers_points():
  table = paper_data.heldout_losses()
  columns = RunColumns(
    "tpu_v4_core_hours", "heldout_loss", "model", "macs", "epochs", None
  )
  fits = fit_study(
    table, columns, extrapolate_from=20_000.0, resamples=2, seed=0
  )
  # By eye from the figure: 3.85 C^-0.043.
  assert fits.power.a == pytest.approx(3.85, abs=0.02)
  assert fits.power.b == pytest.approx(0.043, abs=0.001)
  errors = np.abs(fits.extrapolation.errors(fits.extrapolation.power))
  assert len(errors) == 7 and errors.max() < 0.02
  # Section 2: more than one epoch from about 5,000 core-hours on.
  assert 3_000 < fits.exponents.compute_of_one_epoch() < 6_000
  assert 0.25 < fits.exponents.p < 0.51 < fits.exponents.q < 0.77
