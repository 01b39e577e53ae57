"""The law of sparsity: closed forms, fits, intervals."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.sparsity_fit import (
  FitOptions,
  bootstrap_sparsity_law,
  fit_sparsity_law,
  fit_structure,
)
from nfnets_tf.scaling.sparsity_law import (
  COEFFICIENTS,
  SparsityLaw,
  TrainingCost,
  central_interval,
  sparsity_levels,
)
from tests.support.tables import T5, VIT, sparse_table

NAMES = {
  "nonzero_params": "nonzero",
  "examples": "data",
  "heldout_loss": "loss",
}
LOGS = FitOptions(0.001, True, starts=20, resamples=40, seed=0)
LOSSES = FitOptions(0.01, False, starts=20, resamples=40, seed=0)
COSTS = [TrainingCost(6, 0), TrainingCost(1176, 0.625), TrainingCost(1, 0.9)]
LAWS = pytest.mark.parametrize("law", [VIT, T5], ids=["vit", "t5"])


def points(**options):
  return sparse_table(**options).rename(columns=NAMES)


def mean_huber(law, table, options, weights=None):
  """Returns the mean Huber loss, straight from its definition."""
  total = 0.0
  weights = [1 / len(table)] * len(table) if weights is None else weights
  for row, weight in zip(table.itertuples(), weights):
    part = (law.a_S * (1 - row.sparsity) ** law.b_S + law.c_S) * (
      1 / row.nonzero
    ) ** law.b_N
    predicted = part + (law.a_D / row.data) ** law.b_D + law.c
    off = predicted - row.loss
    if options.log_loss:
      off = np.log(predicted) - np.log(row.loss)
    delta = options.huber_delta
    small = abs(off) <= delta
    total += weight * (off**2 / 2 if small else delta * (abs(off) - delta / 2))
  return total


@LAWS
@pytest.mark.parametrize("options", [LOGS, LOSSES], ids=["logs", "losses"])
def test_recovers_a_law(law, options):
  fit = fit_sparsity_law(points(law=law), options)
  assert fit.coefficients == pytest.approx(law.coefficients, rel=1e-3)
  assert fit.rms < 1e-5 and fit.points == 112 and not fit.bootstrap_samples


@pytest.mark.parametrize("options", [LOGS, LOSSES], ids=["logs", "losses"])
def test_no_other_optimizer_finds_less(options):
  table = points(noise=0.01, seed=3)
  law = fit_sparsity_law(table, options)
  assert law.objective == pytest.approx(mean_huber(law, table, options))

  *columns, loss = table[["sparsity", "nonzero", "data", "loss"]].to_numpy().T

  def objective(x):
    a, c, d, floor = np.exp(x[:4])
    scaled = SparsityLaw(
      a * 1e6 ** x[5], x[4], c * 1e6 ** x[5], x[5], d * 1e9, x[6], floor
    )
    values = scaled.predict(*columns)
    off = np.log(values / loss) if options.log_loss else values - loss
    size, delta = np.abs(off), options.huber_delta
    return 1e4 * np.mean(
      np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    )

  generator = np.random.default_rng(0)
  best = np.inf
  for _ in range(3):
    start = [*np.log([1, 2, 0.3, 4]), 0.8, 0.4, 0.8] * generator.uniform(
      0.8, 1.2, 7
    )
    found = optimize.minimize(
      objective,
      start,
      method="Nelder-Mead",
      options={"maxiter": 2500, "maxfev": 2500, "adaptive": True},
    )
    best = min(best, found.fun / 1e4)
  assert law.objective <= best * (1 + 1e-9)
  assert best < 1.3 * law.objective  # the twin did come close


def test_units_change_only_their_coefficients():
  table = points(noise=0.01, seed=1)
  law = fit_sparsity_law(table, LOGS)
  other = table.assign(
    nonzero=table["nonzero"] / 1e6,
    data=table["data"] * 512,
    loss=table["loss"] / np.log(2),
  )
  scaled = fit_sparsity_law(other, LOGS)
  for name in ("b_S", "b_N", "b_D"):
    assert getattr(scaled, name) == pytest.approx(getattr(law, name), rel=1e-4)
  loss, size = np.log(2), 1e-6**law.b_N
  assert scaled.a_S == pytest.approx(law.a_S * size / loss, rel=1e-3)
  assert scaled.c_S == pytest.approx(law.c_S * size / loss, rel=1e-3)
  assert scaled.c == pytest.approx(law.c / loss, rel=1e-4)
  assert scaled.predict(0.5, 3.0, 512e9) * loss == pytest.approx(
    law.predict(0.5, 3e6, 1e9), rel=1e-6
  )


def test_large_losses_do_not_overflow():
  law = dataclasses.replace(VIT, a_D=1.0, b_D=0.01)
  table = points(law=law, noise=0.01, sizes=range(3), seed=2)
  table["loss"] *= 1e5
  options = dataclasses.replace(LOGS, resamples=30)
  law = bootstrap_sparsity_law(fit_sparsity_law(table, options), table, options)
  assert np.isfinite(law.bootstrap_samples).all()


def test_huber_loss_resists_what_least_squares_does_not():
  table = points(noise=0.002)
  table.loc[[5, 40, 77], "loss"] *= 1.3
  robust = fit_sparsity_law(table, LOGS)
  squares = fit_sparsity_law(table, dataclasses.replace(LOGS, huber_delta=10.0))
  off = [abs(x.b_S / VIT.b_S - 1) for x in (robust, squares)]
  assert off[0] < 0.05 < off[1]


def test_what_the_table_lacks_is_zero_and_not_negative():
  flat = dataclasses.replace(VIT, c=0.0, c_S=0.0)
  law = fit_sparsity_law(points(law=flat, noise=0.001), LOGS)
  assert 0 <= law.c < 0.3 and 0 <= law.c_S < 30
  # A falling curve without a floor, faster than any power of the data.
  steep = points().assign(loss=lambda x: x["loss"] - 5e-10 * x["data"])
  law = fit_sparsity_law(steep, LOGS)
  assert law.c == 0 and min(law.coefficients) >= 0


def sparsest(law, nonzero, compute, cost):
  """Returns the sparsity of the lowest loss, by trying many."""
  sparsity = np.linspace(0, 0.9999, 200_001)
  data = compute / cost.compute(sparsity, nonzero, 1.0)
  return sparsity[law.predict(sparsity, nonzero, data).argmin()]


@LAWS
@pytest.mark.parametrize("cost", COSTS, ids=["dense", "cubic", "early"])
def test_optimal_sparsity_has_the_lowest_loss(law, cost):
  for nonzero in (1e6, 1e8):
    start = float(law.optimal_compute(0.0, nonzero, cost))
    for compute in start * np.array([0.5, 0.99, 3.0, 50.0, 2e3]):
      sparsity = law.optimal_sparsity(nonzero, compute, cost)
      expected = sparsest(law, nonzero, compute, cost)
      assert sparsity == pytest.approx(expected, abs=2e-5)
      assert (sparsity == 0) == (compute < start)


@LAWS
@pytest.mark.parametrize("cost", COSTS, ids=["dense", "cubic", "early"])
def test_contours_are_where_their_sparsity_is_optimal(law, cost):
  nonzero = np.geomspace(1e5, 1e10, 6)
  last = 0.0
  for sparsity in (0.1, 0.5, 0.75, 0.9375):
    compute = law.optimal_compute(sparsity, nonzero, cost)
    optimal = law.optimal_sparsity(nonzero, compute, cost)
    np.testing.assert_allclose(optimal, sparsity, rtol=1e-9)
    assert (compute > last).all()  # more compute favors more sparsity
    last = compute


def test_optimum_has_a_closed_form_if_training_counts_as_dense():
  cost, nonzero, compute = TrainingCost(6, 0), 2e7, 3e20
  right = VIT.b_D * (VIT.a_D * 6 * nonzero / compute) ** VIT.b_D
  right *= nonzero**VIT.b_N / (VIT.a_S * VIT.b_S)
  expected = 1 - right ** (1 / (VIT.b_S + VIT.b_D))
  assert 0 < expected < 1
  sparsity = VIT.optimal_sparsity(nonzero, compute, cost)
  assert sparsity == pytest.approx(expected, rel=1e-12)


def test_where_sparsity_never_helps_none_is_optimal():
  law = dataclasses.replace(VIT, a_S=0.0)
  cost = TrainingCost(6, 0.625)
  assert (law.optimal_sparsity([1e6, 1e9], 1e25, cost) == 0).all()
  assert law.optimal_compute(0.5, 1e6, cost) == np.inf
  assert law.dense_equivalent(0.75) == 1


def test_laws_without_a_term_have_limits_and_no_numpy_warnings():
  cost = TrainingCost(6, 0.625)
  no_data = dataclasses.replace(VIT, a_D=0.0)
  for each in (cost, TrainingCost(6, 0)):
    sparsity = no_data.optimal_sparsity([1e6, 1e9], 1e20, each)
    assert ((sparsity > 1 - 1e-9) & (sparsity < 1)).all()
    data = each.data(sparsity, 1e6, 1e20)
    assert np.isfinite(no_data.predict(sparsity, 1e6, data)).all()
    assert no_data.dense_compute(1e6, each) == 0
  slow = dataclasses.replace(VIT, b_D=0.001, a_S=1e-3)
  assert slow.optimal_compute(0.9, 1e9, cost) == np.inf
  flat = dataclasses.replace(VIT, a_S=0.0, c_S=0.0)
  assert np.isnan(flat.dense_equivalent(0.5))


def test_levels_of_sparsity():
  designed = [0.0, 0.5, 0.75, 0.875, 0.9375, 0.96875, 0.5, 0.0]
  assert sparsity_levels(designed).tolist() == designed
  tenths = np.arange(10) / 10
  assert sparsity_levels(tenths).tolist() == tenths.tolist()
  measured = [0.004, 0.0, 0.499, 0.5, 0.501, 0.89]
  assert sparsity_levels(measured).tolist() == [0, 0, 0.5, 0.5, 0.5, 0.89]
  drawn = np.random.default_rng(0).uniform(0, 0.97, 300)
  levels = sparsity_levels(drawn)
  assert 5 < len(set(levels)) <= 13
  assert np.abs(np.log((1 - levels) / (1 - drawn))).max() < 0.35
  assert ((levels == 0) == (drawn <= 0.01)).all()
  assert sparsity_levels([]).tolist() == []


def test_best_dense_size_has_the_lowest_loss():
  cost = TrainingCost(1176, 0.625)
  for size in (1e6, 3e8):
    compute = VIT.dense_compute(size, cost)
    sizes = np.geomspace(size / 2, size * 2, 20_001)
    losses = VIT.predict(0.0, sizes, cost.data(0.0, sizes, compute))
    assert sizes[losses.argmin()] == pytest.approx(size, rel=1e-3)


def test_equivalent_dense_network_has_the_same_loss():
  for law, sparsity in ((VIT, 0.5), (VIT, 0.875), (T5, 0.75)):
    factor = law.dense_equivalent(sparsity)
    dense = law.predict(0.0, factor * 1e7, 2e9)
    assert dense == pytest.approx(law.predict(sparsity, 1e7, 2e9))
  # By the published coefficients.
  assert VIT.dense_equivalent([0.5, 0.75, 0.875]) == pytest.approx(
    [1.60, 2.17, 2.63], abs=0.01
  )


@pytest.mark.parametrize("begin, end", [(0.25, 0.75), (0.0, 1.0), (0.1, 0.6)])
def test_cost_is_that_of_the_mean_density_of_the_cubic_schedule(begin, end):
  cost = TrainingCost(6, 0.75 * (end - begin) + 1 - end)
  step = (np.arange(100_000) + 0.5) / 100_000
  progress = np.clip((step - begin) / (end - begin), 0, 1)
  density = 1 - 0.8 * (1 - (1 - progress) ** 3)
  compute = 6 * (3e6 / 0.2) * density.mean() * 5e8
  assert cost.compute(0.8, 3e6, 5e8) == pytest.approx(compute, rel=1e-6)
  assert cost.data(0.8, 3e6, compute) == pytest.approx(5e8, rel=1e-6)


@pytest.mark.parametrize(
  "make",
  [
    lambda: TrainingCost(0, 0.5),
    lambda: TrainingCost(6, 1.0),
    lambda: FitOptions(0.0, True, 1, 0, 0),
    lambda: FitOptions(0.1, True, 0, 0, 0),
    lambda: FitOptions(0.1, True, 1, -1, 0),
  ],
)
def test_impossible_settings_are_refused(make):
  with pytest.raises(UserError, match="expected"):
    make()


def test_same_seed_gives_the_same_samples():
  table = points(noise=0.01, sizes=range(3))
  options = dataclasses.replace(LOGS, resamples=5)
  law = fit_sparsity_law(table, options)
  first, again, other = (
    bootstrap_sparsity_law(law, table, dataclasses.replace(options, seed=seed))
    for seed in (0, 0, 1)
  )
  assert first == again and first.bootstrap_samples != other.bootstrap_samples
  assert first.coefficients == law.coefficients
  low, high = first.interval("b_N")
  values = [sample.b_N for sample in first.samples()]
  assert (low, high) == central_interval(values)
  assert min(values) <= low <= high <= max(values)
  assert law.interval("b_N") is None


def test_bootstrap_fits_points_of_random_weights():
  table = points(noise=0.01, sizes=range(4))
  options = dataclasses.replace(LOGS, resamples=3, seed=4)
  law = fit_sparsity_law(table, options)
  law = bootstrap_sparsity_law(law, table, options)
  generator = np.random.default_rng(4)
  weights = generator.dirichlet(np.ones(len(table)), 3)
  for sample, weight in zip(law.samples(), weights):
    best = mean_huber(sample, table, options, weight)
    assert best < mean_huber(law, table, options, weight)
    for _ in range(50):
      factors = np.exp(generator.normal(0, generator.choice([1e-5, 1e-3]), 7))
      other = SparsityLaw(*(np.array(sample.coefficients) * factors))
      assert best < mean_huber(other, table, options, weight)


@pytest.mark.parametrize(
  "sparsities, same", [([0.5, 0.75], []), ([0.5], ["b_S"])]
)
def test_another_structure_changes_only_the_sparse_factor(sparsities, same):
  table = points(noise=0.002)
  options = dataclasses.replace(LOGS, resamples=10)
  law = bootstrap_sparsity_law(fit_sparsity_law(table, options), table, options)
  known = dataclasses.replace(VIT, a_S=200.0, b_S=0.6, c_S=562.0)
  own = points(law=known, noise=0.002, seed=7, sparsities=[0.0, *sparsities])
  found = fit_structure(law, own, options)
  for name in ["b_N", "a_D", "b_D", "c", *same]:
    assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-9)
  # Dense networks have the same loss under all structures.
  assert found.sparse_factor(0.0) == pytest.approx(
    law.sparse_factor(0.0), rel=0.01
  )
  for sparsity in sparsities:
    expected = known.dense_equivalent(sparsity)
    assert found.dense_equivalent(sparsity) == pytest.approx(expected, rel=0.02)
    values = [x.dense_equivalent(sparsity) for x in found.samples()]
    assert len(values) == 10 and np.ptp(values) > 0
    assert min(values) < 1.02 * expected and max(values) > 0.98 * expected


def coverage(law, *, noise, tables, resamples, **design):
  """Returns the share of intervals that contain each coefficient [7].

  Huber's delta is the noise, as for a user who knows it.
  """
  options = FitOptions(noise, True, starts=10, resamples=resamples, seed=0)
  held = np.zeros(len(COEFFICIENTS))
  for seed in range(tables):
    table = points(law=law, noise=noise, seed=seed, **design)
    fit = fit_sparsity_law(table, options)
    fit = bootstrap_sparsity_law(fit, table, options)
    for i, name in enumerate(COEFFICIENTS):
      low, high = fit.interval(name)
      held[i] += low <= law.coefficients[i] <= high
  return held / tables


def test_intervals_cover_the_truth():
  held = coverage(VIT, noise=0.01, tables=12, resamples=40)
  assert 0.75 <= held.mean() <= 0.99


# 48 runs, as of T5: tokens of three budgets.
FEW = {"sizes": (1, 3, 5, 7), "budgets": (6.2, 7.2, 8.2)}


@pytest.mark.soak
@pytest.mark.parametrize("noise", [0.002, 0.01])
@pytest.mark.parametrize(
  "law, design", [(VIT, {}), (T5, FEW)], ids=["vit", "t5"]
)
def test_intervals_of_90_percent_cover_the_truth_as_often(law, design, noise):
  held = coverage(law, noise=noise, tables=200, resamples=200, **design)
  print("coverage", dict(zip(COEFFICIENTS, held)), held.mean())  # noqa: T201
  assert 0.85 <= held.mean() <= 0.95
