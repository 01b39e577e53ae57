"""A study of a law that is known."""

import json

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.scaling import paper_points
from nfnets_tf.scaling.observations import Columns
from nfnets_tf.scaling.study import BUDGETS, Fits, fit_study
from tests.support.tables import fit_quickly as fit
from tests.support.tables import known_table as known


@pytest.fixture(scope="module")
def fits():
  return fit(known())


def test_the_law_and_the_allocation_are_found(fits):
  assert len(fits.points) == 48  # the best rate of each
  assert fits.power.b == pytest.approx(0.15, abs=0.01)
  assert fits.exponents.p == pytest.approx(0.5, abs=0.05)
  assert fits.exponents.q == pytest.approx(0.5, abs=0.05)
  assert fits.surface.u == pytest.approx(0.3, abs=1e-3)
  assert fits.surface.v == pytest.approx(0.3, abs=1e-3)
  assert len(fits.allocation) == BUDGETS


def test_the_dear_points_are_predicted_from_the_cheap_ones(fits):
  errors = fits.held_back.errors(fits.held_back.power)
  assert len(errors) > 3 and np.abs(errors).max() < 0.05
  assert min(fits.held_back.compute) >= fits.held_back.threshold


def test_best_rates_are_inside_the_grid(fits):
  assert set(fits.rates["rate"]) == {0.2} and set(fits.rates["edge"]) == {""}


def test_a_file_tells_every_coefficient_with_its_interval(fits):
  told = json.loads(json.dumps(fits.to_json()))
  for law, names in (("power_law", "ab"), ("offset_law", "abc")):
    for name in names:
      low, high = told[law][name]["interval"]
      assert low <= told[law][name]["value"] * (1 + 1e-9) and low <= high
  assert told["allocation"]["size_exponent"]["interval"]
  assert told["surface"]["u"]["interval"]
  assert told["points"] == 48


def test_in_words(fits):
  told = dict(fits.describe())
  assert "48, " in told["points"] and told["law"].startswith("L = ")
  assert told["size ~ C^p"].startswith("0.")
  assert "at the largest compute" in told["held back"]


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_a_study_that_has_just_begun_does_not_fail(rows):
  fits = fit(known(sizes=[0]).iloc[:rows])
  assert isinstance(fits, Fits) and fits.exponents is None
  assert json.dumps(fits.to_json()) and fits.describe()
  if rows < 5:
    assert fits.power is None


def test_failed_points_change_nothing_but_their_number():
  table = known()
  failed = table.iloc[:5].assign(loss=np.nan)
  both = fit(pd.concat([table, failed]))
  assert both.left_out == {"without positive numbers": 5}
  assert both.power.b == fit(table).power.b


def test_the_papers_points():
  table = paper_points.heldout_losses().merge(paper_points.models(), on="model")
  columns = Columns(
    "tpu_v4_core_hours", "heldout_loss", "model", "macs", "epochs", None
  )
  fits = fit_study(
    table, columns, held_back_from=20_000.0, resamples=10, seed=0
  )
  # By eye from the figure: 3.85 C^-0.043.
  assert fits.power.a == pytest.approx(3.85, abs=0.02)
  assert fits.power.b == pytest.approx(0.043, abs=0.001)
  errors = np.abs(fits.held_back.errors(fits.held_back.power))
  assert len(errors) == 7 and errors.max() < 0.02
  # Section 2: more than one epoch from about 5,000 core-hours on.
  assert 3_000 < fits.exponents.compute_of_one_epoch() < 6_000
  assert 0.25 < fits.exponents.p < 0.51 < fits.exponents.q < 0.77
