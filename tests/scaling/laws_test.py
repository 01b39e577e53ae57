import json

import numpy as np
import pytest
from scipy import optimize

from nfnets_tf.scaling import laws
from tests.support.tables import paper_table

RANGES = [(1, 1e3), (400, 1e5), (1e17, 1e23)]


def noisy(a, b, c, n=12, noise=0.01, seed=0, ends=(400, 1e5)):
  compute = np.geomspace(*ends, n)
  loss = a * compute**-b + c
  factors = np.exp(np.random.default_rng(seed).normal(0, noise, n))
  return compute, loss * factors


def coefficients(law):
  return law.a, law.b, law.c


def rms_of(law, compute, loss):
  return np.sqrt(np.mean(np.log(law.predict(compute) / loss) ** 2))


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize("a, b", [(4, 0.05), (1e3, 0.2), (1e9, 1), (3, -0.1)])
def test_a_power_law_is_recovered(a, b, ends):
  law = laws.fit_power_law(*noisy(a, b, 0, noise=0, ends=ends))
  assert coefficients(law) == pytest.approx((a, b, 0), rel=1e-9)
  assert law.rms < 1e-12 and law.r2 == pytest.approx(1)
  assert not law.has_offset and law.points == 12 and law.draws == ()


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize(
  "a, b, c",
  [(4, 0.05, 1), (100, 0.3, 2), (1e6, 0.5, 0.1), (3, 0.2, 1.9), (4, 0.05, 0)],
)
def test_a_law_with_offset_is_recovered(a, b, c, ends):
  law = laws.fit_offset_law(*noisy(a, b, c, noise=0, ends=ends))
  assert coefficients(law) == pytest.approx((a, b, c), rel=1e-3)
  assert law.rms < 1e-8 and law.has_offset


def test_the_power_law_is_the_least_squares_line():
  compute, loss = noisy(4, 0.05, 0, seed=1)
  law = laws.fit_power_law(compute, loss)
  matrix = np.stack([np.ones(12), -np.log(compute)], axis=1)
  (log_a, b), *_ = np.linalg.lstsq(matrix, np.log(loss), rcond=None)
  assert (law.a, law.b) == pytest.approx((np.exp(log_a), b))
  residuals = np.log(loss) - matrix @ [log_a, b]
  assert law.rms == pytest.approx(np.sqrt(np.mean(residuals**2)))
  spread = np.sum((np.log(loss) - np.log(loss).mean()) ** 2)
  assert law.r2 == pytest.approx(1 - np.sum(residuals**2) / spread)


@pytest.mark.parametrize("seed", range(3))
def test_the_law_with_offset_is_the_best_of_a_grid_over_the_offset(seed):
  compute, loss = noisy(3, 0.2, 2, noise=0.005, seed=seed)
  law = laws.fit_offset_law(compute, loss)
  middle = np.exp(np.log(compute).mean())

  def best(c):
    def squares(p):
      predicted = np.exp(p[0]) * (compute / middle) ** -p[1] + c
      return np.mean(np.log(predicted / loss) ** 2)

    line = laws.fit_power_law(compute / middle, loss - c)
    start = [np.log(line.a), line.b]
    options = {"xatol": 1e-7, "fatol": 1e-14}
    return optimize.minimize(
      squares, start, method="Nelder-Mead", options=options
    ).fun

  grid = np.linspace(0, 0.999 * loss.min(), 40)
  found = np.array([best(c) for c in grid])
  assert law.rms**2 <= found.min() * (1 + 1e-6)
  assert abs(law.c - grid[found.argmin()]) <= grid[1]
  assert law.rms == pytest.approx(rms_of(law, compute, loss))


@pytest.mark.parametrize("bend", [0, -0.5])
def test_the_offset_is_zero_where_the_curve_does_not_flatten(bend):
  compute, loss = noisy(4, 0.05, bend, noise=0)
  law, straight = (
    f(compute, loss) for f in (laws.fit_offset_law, laws.fit_power_law)
  )
  assert law.c == 0 and law.has_offset
  assert (law.a, law.b) == pytest.approx((straight.a, straight.b), rel=1e-5)


@pytest.mark.parametrize("fit", [laws.fit_power_law, laws.fit_offset_law])
def test_the_unit_of_compute_changes_nothing_but_a(fit):
  compute, loss = noisy(3, 0.2, 2, seed=3)
  one, other = fit(compute, loss), fit(compute * 1e15, loss)
  assert (other.b, other.c) == pytest.approx((one.b, one.c), rel=1e-4)
  assert other.a == pytest.approx(one.a * 1e15**other.b, rel=1e-3)


@pytest.mark.parametrize(
  "fit, least", [(laws.fit_power_law, 3), (laws.fit_offset_law, 4)]
)
def test_too_few_different_computes_give_no_law(fit, least):
  few = [*range(1, least)]
  for compute in ([], few, few + few):
    assert fit(compute, [2.0] * len(compute)) is None
  enough = [*range(1, least + 1)]
  assert fit(enough, 1.0 / np.array(enough)) is not None
  assert fit(enough, 1.0 / np.array(enough), needed=least + 1) is None
  # Never fewer than there are coefficients.
  assert fit(few[:-1], few[:-1], needed=0) is None


@pytest.mark.parametrize("loss", [2.3, 2.7, 0.1, 3.3])
def test_equal_losses_leave_nothing_to_explain(loss):
  law = laws.fit_power_law([1, 2, 4, 8, 16, 32, 64], [loss] * 7)
  assert np.isnan(law.r2) and law.to_json()["r2"] is None
  assert (law.a, law.b) == pytest.approx((loss, 0), abs=1e-12)


def test_a_seed_gives_the_same_draws():
  compute, loss = noisy(4, 0.05, 0)
  law = laws.fit_power_law(compute, loss)
  one, again, other = (
    laws.bootstrap(law, compute, loss, resamples=30, seed=seed)
    for seed in (0, 0, 1)
  )
  assert one == again and one.draws != other.draws
  assert len(set(one.draws)) == 30 and all(draw[2] == 0 for draw in one.draws)
  assert coefficients(one) == coefficients(law)
  assert laws.bootstrap(None, [], [], resamples=3, seed=0) is None


def test_resamples_of_too_few_points_are_drawn_again():
  compute, loss = [1.0, 5.0, 100.0], [4.0, 3.0, 2.4]
  law = laws.fit_power_law(compute, loss)
  law = laws.bootstrap(law, compute, loss, resamples=100, seed=0)
  # Either all three points, or the line through two of them.
  assert len(law.draws) == 100 and np.isfinite(law.draws).all()
  assert len({round(b, 9) for _, b, _ in law.draws}) == 4


def test_the_offset_is_drawn_too():
  compute, loss = noisy(3, 0.2, 2, noise=0.003)
  law = laws.fit_offset_law(compute, loss)
  law = laws.bootstrap(law, compute, loss, resamples=20, seed=0)
  low, high = law.interval("c")
  assert 0 <= low < law.c < high < loss.min()
  assert high - low > 1e-3 and low < 2 < high


def test_the_interval_holds_the_truth_in_most_experiments():
  a, b, held, false = 4, 0.05, 0, 0
  for seed in range(40):
    compute, loss = noisy(a, b, 0, n=16, seed=seed)
    law = laws.fit_power_law(compute, loss)
    law = laws.bootstrap(law, compute, loss, resamples=100, seed=seed)
    low, high = law.interval("b")
    held += low <= b <= high
    false += low <= 1.15 * b <= high
    assert law.interval("a")[0] < law.a < law.interval("a")[1]
  # 95 % if there were many points; a slope that is 15 % off is found out.
  assert 32 <= held and false <= 8


def test_intervals_and_bands_are_percentiles_of_the_draws():
  compute, loss = noisy(4, 0.05, 0)
  law = laws.fit_power_law(compute, loss)
  assert law.interval("a") is None and law.band([1, 2]) is None
  law = laws.bootstrap(law, compute, loss, resamples=81, seed=0)
  for i, name in enumerate("abc"):
    ranked = sorted(draw[i] for draw in law.draws)
    assert law.interval(name) == pytest.approx((ranked[2], ranked[78]))
  at = [500.0, 5e3, 5e4]
  band = law.band(at)
  assert band.shape == (2, 3)
  for j, x in enumerate(at):
    ranked = sorted(a * x**-b + c for a, b, c in law.draws)
    assert band[:, j] == pytest.approx([ranked[2], ranked[78]])
  assert laws.central_interval(range(81)) == (2, 78)


def test_a_law_is_told_with_its_intervals():
  law = laws.Law(3.85142, 0.0430386, 0, False, 24, 0.0068, 0.99)
  assert law.describe() == "L = 3.851 C^-0.04304"
  draws = ((3, 0.04, 0), (4, 0.05, 0))
  drawn = laws.Law(3.85142, 0.0430386, 0, False, 24, 0.0068, 0.99, draws)
  assert drawn.describe() == (
    "L = 3.851 C^-0.04304 (a 3.02 to 3.98, b 0.0403 to 0.0498)"
  )
  bent = laws.Law(2.76, 0.0937, 1.41892, True, 24, 0.0062, 0.99)
  assert bent.describe() == "L = 2.76 C^-0.0937 + 1.419"
  bent = laws.Law(2, 0.1, 1, True, 4, 0.1, 0.9, ((2, 0.1, 1), (2, 0.1, 1)))
  assert bent.describe().endswith("(a 2 to 2, b 0.1 to 0.1, c 1 to 1)")


def test_a_file_tells_coefficients_intervals_and_the_fit():
  told = laws.Law(4, 0.05, 0, False, 9, 0.01, 0.9).to_json()
  assert told == {
    "form": "L = a C^-b",
    "a": {"value": 4, "interval": None},
    "b": {"value": 0.05, "interval": None},
    "points": 9,
    "rms_log_residual": 0.01,
    "r2": 0.9,
    "resamples": 0,
  }
  draws = ((3, 0.04, 1), (4, 0.05, 1))
  told = laws.Law(4, 0.05, 1, True, 9, 0.01, 0.9, draws).to_json()
  assert told["form"] == "L = a C^-b + c" and told["resamples"] == 2
  assert told["c"] == {"value": 1, "interval": (1, 1)}
  assert told["a"]["interval"] == pytest.approx((3.025, 3.975))
  assert json.loads(json.dumps(told))["b"]["value"] == 0.05


def test_the_papers_law():
  """Through figure 2's best points: 3.85 C^-0.043, C in TPU-v4 core-hours."""
  best = laws.fit_power_law(*paper_table(best=True))
  assert 0.035 < best.b < 0.05 and best.a == pytest.approx(3.85, rel=0.01)
  assert best.r2 > 0.98 and best.rms < 0.01
  bent = laws.fit_offset_law(*paper_table(best=True))
  assert 0 < bent.c < 2.339 and bent.rms < best.rms
