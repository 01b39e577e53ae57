"""The Pareto frontier and the best size and epochs at a compute."""

import json

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.scaling import allocation
from nfnets_tf.scaling.allocation import Exponents
from tests.support.tables import paper_table

COLUMNS = ["model", "size", "epochs", "compute", "loss"]


def bowls(p=0.4, s=1.0):
  """Log losses that are parabolas in log N around N = 2 C^p; N^s E is C."""
  rows = []
  for i, size in enumerate(np.geomspace(40, 5e3, 9)):
    for compute in np.geomspace(1e3, 1e9, 60):
      off = np.log(size) - np.log(2) - p * np.log(compute)
      loss = 9 * compute**-0.05 * np.exp(0.1 * off**2)
      rows.append((f"m{i}", size, compute / size**s, compute, loss))
  return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("seed", range(20))
def test_frontier_equals_naive_search(seed):
  generator = np.random.default_rng(seed)
  # Few values, so that there are ties of either and of both.
  compute = generator.integers(1, 12, 40) / 2
  loss = generator.integers(1, 25, 40) / 4
  table = pd.DataFrame({"compute": compute, "loss": loss, "name": range(40)})
  rows = list(zip(compute, loss))

  def beaten(i):
    return any(
      x <= rows[i][0] and y <= rows[i][1] and ((x, y) != rows[i] or j < i)
      for j, (x, y) in enumerate(rows)
      if j != i
    )

  kept = sorted((i for i in range(40) if not beaten(i)), key=lambda i: rows[i])
  frontier = allocation.pareto_frontier(table)
  assert frontier["name"].tolist() == kept
  assert frontier.index.tolist() == list(range(len(kept)))
  assert frontier["loss"].is_monotonic_decreasing


@pytest.mark.filterwarnings("error")
def test_frontier_of_equal_or_no_losses():
  table = pd.DataFrame({"compute": [1, 2, 3], "loss": [3, 3, 1]})
  assert allocation.pareto_frontier(table)["compute"].tolist() == [1, 3]
  assert not len(allocation.pareto_frontier(table.iloc[:0]))


@pytest.mark.parametrize(
  "p, q, s", [(0.4, 0.6, 1), (0.5, 0.5, 1), (0.45, 0.46, 1.2)]
)
def test_recovers_exponents_of_known_losses(p, q, s):
  points = bowls(p, s)
  table = allocation.optimal_allocation(points, budgets=15)
  inside = table[table["state"] == "interior"]
  assert len(inside) >= 8
  size = 2 * inside["compute"] ** p
  np.testing.assert_allclose(inside["size"], size, rtol=0.01)
  np.testing.assert_allclose(
    inside["epochs"], inside["compute"] / size**s, rtol=0.02
  )
  loss = 9 * inside["compute"] ** -0.05
  np.testing.assert_allclose(inside["loss"], loss, rtol=2e-3)
  exponents = allocation.fit_exponents(table)
  assert (exponents.p, exponents.q) == pytest.approx((p, q), abs=5e-3)
  assert (exponents.k, exponents.budgets) == (
    pytest.approx(2, rel=0.05),
    len(inside),
  )
  assert s * exponents.p + exponents.q == pytest.approx(1, abs=5e-3)


def test_budgets_are_log_spaced_over_the_range():
  table = allocation.optimal_allocation(bowls(), budgets=7)
  np.testing.assert_allclose(table["compute"], np.geomspace(1e3, 1e9, 7))
  assert table["models"].tolist() == [9] * 7
  # The smallest is best at the left end, the largest at the right.
  states = table["state"].tolist()
  assert states[0] == states[-1] == "edge" and "interior" in states


def three(losses, sizes=(1.0, 2.0, 4.0)):
  """Models of two points each, a factor of 4 of compute apart."""
  rows = [
    (f"m{i}", size, compute / size, compute, loss / share)
    for i, (size, loss) in enumerate(zip(sizes, losses))
    for compute, share in ((1.0, 1), (4.0, 1.21))
  ]
  return pd.DataFrame(rows, columns=COLUMNS)


def test_optimum_is_the_minimum_of_the_parabola():
  table = allocation.optimal_allocation(three([3, 2, 2.4]), budgets=3)
  # In the middle, at 2: losses / 1.1; h = log 2 apart.
  h, (low, mid, high) = np.log(2), np.log(np.array([3, 2, 2.4]) / 1.1)
  shift = h * (low - high) / (2 * (low - 2 * mid + high))
  lowest = mid - (low - high) ** 2 / (8 * (low - 2 * mid + high))
  row = table.iloc[1]
  assert (row["models"], row["best_model"]) == (3, "m1")
  assert row["state"] == "interior"
  assert row["compute"] == pytest.approx(2)
  assert row["size"] == pytest.approx(2 * np.exp(shift))
  assert row["epochs"] == pytest.approx(1 / np.exp(shift))
  assert row["loss"] == pytest.approx(np.exp(lowest))


@pytest.mark.parametrize(
  "losses, best",
  [
    ([1, 2, 3], "m0"),
    ([3, 2, 1], "m2"),
    ([1.9, 3, 2], "m0"),  # a parabola without a lowest point
    ([2, 2.01, 3], "m0"),  # whose lowest point is inside
  ],
)
def test_optimum_at_the_edge_has_no_size(losses, best):
  table = allocation.optimal_allocation(three(losses), budgets=2)
  assert table["state"].tolist() == ["edge"] * 2
  assert table["best_model"].tolist() == [best] * 2
  assert table[["size", "epochs", "loss"]].isna().all(axis=None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 2)], ids=str)
def test_fewer_than_three_sizes_are_too_few(sizes):
  points = three([3, 2, 2.4][: len(sizes)], sizes)
  table = allocation.optimal_allocation(points, budgets=2)
  assert table["state"].tolist() == ["too_few_models"] * 2
  assert table["best_model"].tolist() == ["m1"] * 2
  assert table["size"].isna().all()


def test_budget_that_no_model_reaches_has_no_best_model():
  low, high = three([3, 2, 2.4]), three([3, 2, 2.4])
  high["compute"] *= 1e3
  high["model"] += "'"
  both = pd.concat([low, high])
  row = allocation.optimal_allocation(both, budgets=5).iloc[2]
  assert row["models"] == 0 and pd.isna(row["best_model"])
  assert row["state"] == "too_few_models"


def test_ignores_models_of_a_single_point():
  points = three([3, 2, 2.4])
  more = three([1, 1], (8.0, 16.0)).iloc[[0, 2]]
  more["model"] += "'"
  kept, without, none = (
    allocation.optimal_allocation(table, budgets=3)
    for table in (points, pd.concat([points, more]), points.iloc[:0])
  )
  pd.testing.assert_frame_equal(kept, without)
  assert len(none) == 0 and list(none) == list(kept)


def optima(compute, p=0.4, q=0.6, state="interior"):
  x = np.array(compute, float)
  columns = {"compute": x, "size": 5 * x**p, "epochs": 0.01 * x**q}
  return pd.DataFrame({**columns, "state": state})


def test_exponents_use_interior_optima_only():
  excluded = [
    optima([1e5], p=9, state=state) for state in ("too_few_models", "edge")
  ]
  table = pd.concat([optima([100, 1e3, 1e4]), *excluded])
  exponents = allocation.fit_exponents(table)
  values = (exponents.p, exponents.q, exponents.k, exponents.m)
  assert values == pytest.approx((0.4, 0.6, 5, 0.01))
  assert exponents.budgets == 3 and exponents.bootstrap_samples == ()
  assert exponents.compute_of_one_epoch() == pytest.approx(100 ** (1 / 0.6))


def test_too_few_or_too_close_optima_give_no_exponents():
  for compute in ([], [1, 10], [1, 1.4, 1.99]):
    assert allocation.fit_exponents(optima(compute)) is None
  assert allocation.fit_exponents(optima([1, 1.4, 2.01])) is not None
  points = three([3, 2])
  assert allocation.bootstrap_exponents(points, resamples=2, seed=0) is None


def test_json_has_exponents_and_intervals():
  def value(number):
    return {"value": pytest.approx(number), "interval": None}

  assert Exponents(0.4, 0.6, 5, 0.01, 7).to_json() == {
    "size_exponent": value(0.4),
    "epochs_exponent": value(0.6),
    "epochs_minus_size": value(0.2),
    "compute_of_one_epoch": value(100 ** (1 / 0.6)),
    "budgets": 7,
    "resamples": 0,
  }
  samples = ((0.4, 0.5, 5, 0.01), (0.3, 0.7, 5, 0.01))
  content = Exponents(0.4, 0.6, 5, 0.01, 7, samples).to_json()
  assert content["resamples"] == 2 and json.dumps(content)
  assert content["epochs_minus_size"]["interval"] == pytest.approx(
    (0.1 + 0.3 * 0.025, 0.4 - 0.3 * 0.025)
  )


def test_papers_size_and_epochs_both_grow():
  """Section 2: with compute, and over 5k core-hours beyond one epoch."""
  points = paper_table().rename(columns={"macs": "size"})
  exponents, again, different = (
    allocation.bootstrap_exponents(points, resamples=8, seed=seed)
    for seed in (0, 0, 1)
  )
  assert 0.2 < exponents.p < exponents.q < 0.8
  assert 3_000 < exponents.compute_of_one_epoch() < 6_000
  # An epoch of N MACs takes N^s: the compute is N^s E.
  models = points[points["epochs"] == 1]
  s, _ = np.polyfit(np.log(models["size"]), np.log(models["compute"]), 1)
  assert s * exponents.p + exponents.q == pytest.approx(1, abs=0.03)
  assert (
    exponents == again
    and exponents.bootstrap_samples != different.bootstrap_samples
  )
  assert 4 < len(exponents.bootstrap_samples) <= 8
  for i, value in enumerate((exponents.p, exponents.q)):
    values = [sample[i] for sample in exponents.bootstrap_samples]
    assert min(values) < value < max(values)
