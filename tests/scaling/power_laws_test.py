"""Power laws: fits, intervals, extrapolation."""

import json

import numpy as np
import pytest
from scipy import optimize

from nfnets_tf.scaling import power_laws
from nfnets_tf.scaling.power_laws import Extrapolation, Law
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
def test_recovers_power_law(a, b, ends):
  law = power_laws.fit_power_law(*noisy(a, b, 0, noise=0, ends=ends))
  assert coefficients(law) == pytest.approx((a, b, 0), rel=1e-9)
  assert law.rms < 1e-12 and law.r2 == pytest.approx(1)
  assert not law.has_offset and law.points == 12 and law.bootstrap_samples == ()


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize(
  "a, b, c",
  [(4, 0.05, 1), (100, 0.3, 2), (1e6, 0.5, 0.1), (3, 0.2, 1.9), (4, 0.05, 0)],
)
def test_recovers_law_with_offset(a, b, c, ends):
  law = power_laws.fit_offset_law(*noisy(a, b, c, noise=0, ends=ends))
  assert coefficients(law) == pytest.approx((a, b, c), rel=1e-3)
  assert law.rms < 1e-8 and law.has_offset


def test_power_law_is_the_least_squares_line():
  compute, loss = noisy(4, 0.05, 0, seed=1)
  law = power_laws.fit_power_law(compute, loss)
  matrix = np.stack([np.ones(12), -np.log(compute)], axis=1)
  (log_a, b), *_ = np.linalg.lstsq(matrix, np.log(loss), rcond=None)
  assert (law.a, law.b) == pytest.approx((np.exp(log_a), b))
  residuals = np.log(loss) - matrix @ [log_a, b]
  assert law.rms == pytest.approx(np.sqrt(np.mean(residuals**2)))
  spread = np.sum((np.log(loss) - np.log(loss).mean()) ** 2)
  assert law.r2 == pytest.approx(1 - np.sum(residuals**2) / spread)


@pytest.mark.parametrize("seed", range(3))
def test_law_with_offset_beats_grid_over_the_offset(seed):
  compute, loss = noisy(3, 0.2, 2, noise=0.005, seed=seed)
  law = power_laws.fit_offset_law(compute, loss)
  middle = np.exp(np.log(compute).mean())

  def best(c):
    def squares(p):
      predicted = np.exp(p[0]) * (compute / middle) ** -p[1] + c
      return np.mean(np.log(predicted / loss) ** 2)

    line = power_laws.fit_power_law(compute / middle, loss - c)
    start = [np.log(line.a), line.b]
    options = {"xatol": 1e-7, "fatol": 1e-14}
    return optimize.minimize(
      squares, start, method="Nelder-Mead", options=options
    ).fun

  grid = np.linspace(0, 0.999 * loss.min(), 40)
  costs = np.array([best(c) for c in grid])
  assert law.rms**2 <= costs.min() * (1 + 1e-6)
  assert abs(law.c - grid[costs.argmin()]) <= grid[1]
  assert law.rms == pytest.approx(rms_of(law, compute, loss))


@pytest.mark.parametrize("bend", [0, -0.5])
def test_offset_is_zero_where_the_curve_does_not_flatten(bend):
  compute, loss = noisy(4, 0.05, bend, noise=0)
  law, straight = (
    f(compute, loss)
    for f in (power_laws.fit_offset_law, power_laws.fit_power_law)
  )
  assert law.c == 0 and law.has_offset
  assert (law.a, law.b) == pytest.approx((straight.a, straight.b), rel=1e-5)


@pytest.mark.parametrize(
  "fit", [power_laws.fit_power_law, power_laws.fit_offset_law]
)
def test_unit_of_compute_changes_only_a(fit):
  compute, loss = noisy(3, 0.2, 2, seed=3)
  law, scaled = fit(compute, loss), fit(compute * 1e15, loss)
  assert (scaled.b, scaled.c) == pytest.approx((law.b, law.c), rel=1e-4)
  assert scaled.a == pytest.approx(law.a * 1e15**scaled.b, rel=1e-3)


@pytest.mark.parametrize(
  "fit, least", [(power_laws.fit_power_law, 3), (power_laws.fit_offset_law, 4)]
)
def test_too_few_different_computes_give_no_law(fit, least):
  few = [*range(1, least)]
  for compute in ([], few, few + few):
    assert fit(compute, [2.0] * len(compute)) is None
  enough = [*range(1, least + 1)]
  assert fit(enough, 1.0 / np.array(enough)) is not None
  assert fit(enough, 1.0 / np.array(enough), min_points=least + 1) is None
  # Never fewer than there are coefficients.
  assert fit(few[:-1], few[:-1], min_points=0) is None


@pytest.mark.parametrize("loss", [2.3, 2.7, 0.1, 3.3])
def test_equal_losses_have_no_r2(loss):
  law = power_laws.fit_power_law([1, 2, 4, 8, 16, 32, 64], [loss] * 7)
  assert np.isnan(law.r2) and law.to_json()["r2"] is None
  assert (law.a, law.b) == pytest.approx((loss, 0), abs=1e-12)


def test_same_seed_gives_the_same_samples():
  compute, loss = noisy(4, 0.05, 0)
  law = power_laws.fit_power_law(compute, loss)
  first, again, different = (
    power_laws.bootstrap_law(law, compute, loss, resamples=30, seed=seed)
    for seed in (0, 0, 1)
  )
  assert (
    first == again and first.bootstrap_samples != different.bootstrap_samples
  )
  assert len(set(first.bootstrap_samples)) == 30 and all(
    draw[2] == 0 for draw in first.bootstrap_samples
  )
  assert coefficients(first) == coefficients(law)
  assert power_laws.bootstrap_law(None, [], [], resamples=3, seed=0) is None


def test_resamples_of_too_few_points_are_redrawn():
  compute, loss = [1.0, 5.0, 100.0], [4.0, 3.0, 2.4]
  law = power_laws.fit_power_law(compute, loss)
  law = power_laws.bootstrap_law(law, compute, loss, resamples=100, seed=0)
  # Either all three points, or the line through two of them.
  assert (
    len(law.bootstrap_samples) == 100
    and np.isfinite(law.bootstrap_samples).all()
  )
  assert len({round(b, 9) for _, b, _ in law.bootstrap_samples}) == 4


def test_offset_is_bootstrapped():
  compute, loss = noisy(3, 0.2, 2, noise=0.003)
  law = power_laws.fit_offset_law(compute, loss)
  law = power_laws.bootstrap_law(law, compute, loss, resamples=20, seed=0)
  low, high = law.interval("c")
  assert 0 <= low < law.c < high < loss.min()
  assert high - low > 1e-3 and low < 2 < high


def test_interval_covers_the_truth_in_most_experiments():
  a, b, held, false = 4, 0.05, 0, 0
  for seed in range(40):
    compute, loss = noisy(a, b, 0, n=16, seed=seed)
    law = power_laws.fit_power_law(compute, loss)
    law = power_laws.bootstrap_law(law, compute, loss, resamples=100, seed=seed)
    low, high = law.interval("b")
    held += low <= b <= high
    false += low <= 1.15 * b <= high
    assert law.interval("a")[0] < law.a < law.interval("a")[1]
  # 95 % if there were many points; a slope that is 15 % off is detected.
  assert 32 <= held and false <= 8


def test_intervals_and_bands_are_percentiles_of_the_samples():
  compute, loss = noisy(4, 0.05, 0)
  law = power_laws.fit_power_law(compute, loss)
  assert law.interval("a") is None and law.band([1, 2]) is None
  law = power_laws.bootstrap_law(law, compute, loss, resamples=81, seed=0)
  for i, name in enumerate("abc"):
    ranked = sorted(draw[i] for draw in law.bootstrap_samples)
    assert law.interval(name) == pytest.approx((ranked[2], ranked[78]))
  at = [500.0, 5e3, 5e4]
  band = law.band(at)
  assert band.shape == (2, 3)
  for j, x in enumerate(at):
    ranked = sorted(a * x**-b + c for a, b, c in law.bootstrap_samples)
    assert band[:, j] == pytest.approx([ranked[2], ranked[78]])
  assert power_laws.central_interval(range(81)) == (2, 78)


def test_describes_law_with_intervals():
  law = Law(3.85142, 0.0430386, 0, False, 24, 0.0068, 0.99)
  assert law.describe() == "L = 3.851 C^-0.04304"
  samples = ((3, 0.04, 0), (4, 0.05, 0))
  law = Law(3.85142, 0.0430386, 0, False, 24, 0.0068, 0.99, samples)
  assert law.describe() == (
    "L = 3.851 C^-0.04304 (a 3.02 to 3.98, b 0.0403 to 0.0498)"
  )
  bent = Law(2.76, 0.0937, 1.41892, True, 24, 0.0062, 0.99)
  assert bent.describe() == "L = 2.76 C^-0.0937 + 1.419"
  bent = Law(2, 0.1, 1, True, 4, 0.1, 0.9, ((2, 0.1, 1), (2, 0.1, 1)))
  assert bent.describe().endswith("(a 2 to 2, b 0.1 to 0.1, c 1 to 1)")


def test_json_has_coefficients_intervals_and_quality():
  content = Law(4, 0.05, 0, False, 9, 0.01, 0.9).to_json()
  assert content == {
    "form": "L = a C^-b",
    "a": {"value": 4, "interval": None},
    "b": {"value": 0.05, "interval": None},
    "points": 9,
    "rms_log_residual": 0.01,
    "r2": 0.9,
    "resamples": 0,
  }
  samples = ((3, 0.04, 1), (4, 0.05, 1))
  content = Law(4, 0.05, 1, True, 9, 0.01, 0.9, samples).to_json()
  assert content["form"] == "L = a C^-b + c" and content["resamples"] == 2
  assert content["c"] == {"value": 1, "interval": (1, 1)}
  assert content["a"]["interval"] == pytest.approx((3.025, 3.975))
  assert json.loads(json.dumps(content))["b"]["value"] == 0.05


def test_fits_the_papers_law():
  """Through figure 2's best points: 3.85 C^-0.043, C in TPU-v4 core-hours."""
  best = power_laws.fit_power_law(*paper_table(best=True))
  assert 0.035 < best.b < 0.05 and best.a == pytest.approx(3.85, rel=0.01)
  assert best.r2 > 0.98 and best.rms < 0.01
  bent = power_laws.fit_offset_law(*paper_table(best=True))
  assert 0 < bent.c < 2.339 and bent.rms < best.rms


# L = 8 C^-0.5: at 1, 4, 16 and so on 8, 4, 2 ...
COMPUTE = [4.0**i for i in range(7)]
LOSS = [8.0 / 2**i for i in range(7)]


def predict(compute=COMPUTE, loss=LOSS, threshold=None, resamples=0, seed=0):
  return power_laws.extrapolate(
    compute, loss, threshold=threshold, resamples=resamples, seed=seed
  )


def test_points_above_the_threshold_are_not_fitted():
  # From 4^5 on losses are twice as high as cheaper ones say.
  loss = LOSS[:5] + [2 * y for y in LOSS[5:]]
  result = predict(loss=loss, threshold=4.0**5)
  assert result.fitted_points == 5 and result.threshold == 4.0**5
  assert result.compute == (4.0**5, 4.0**6)
  assert result.loss == tuple(loss[5:])
  for law in (result.power, result.offset):
    assert (law.a, law.b, law.points) == (
      pytest.approx(8, rel=1e-5),
      pytest.approx(0.5, rel=1e-5),
      5,
    )
    # Predicted / measured - 1: half of it is lacking.
    assert result.errors(law) == pytest.approx([-0.5, -0.5], rel=1e-4)


def test_order_of_points_does_not_matter():
  shuffled = np.random.default_rng(0).permutation(7)
  compute, loss = np.array(COMPUTE)[shuffled], np.array(LOSS)[shuffled]
  assert predict(compute, loss, resamples=3) == predict(resamples=3)


def test_default_threshold_is_the_middle_of_the_range():
  result = predict()
  assert result.threshold == pytest.approx(4.0**3)
  # The point at the threshold is not fitted.
  assert result.compute == tuple(COMPUTE[3:]) and result.fitted_points == 3
  assert result.power is not None and result.offset is None  # takes four


def test_reports_no_points_above_the_threshold():
  result = predict(threshold=1e9)
  assert result.fitted_points == 7 and result.compute == result.loss == ()
  assert result.describe(result.power) == "no points above the threshold"
  assert len(result.errors(result.power)) == 0
  assert result.to_json()["points"] == []


@pytest.mark.parametrize("threshold", [0.5, 4.0**2])
def test_reports_too_few_points_below_the_threshold(threshold):
  result = predict(threshold=threshold, resamples=5)
  assert result.power is None and result.offset is None
  assert result.errors(result.power) is None
  assert (
    result.describe(result.power) == "not enough points below the threshold"
  )
  content = result.to_json()
  assert content["power_law"] is None and content["offset_law"] is None
  assert all(set(point) == {"compute", "loss"} for point in content["points"])


def test_extrapolates_empty_table():
  result = predict([], [])
  assert result.compute == () and result.power is None


def test_describes_largest_and_last_error():
  law = Law(8, 0.5, 0, False, 5, 0, 1)  # 1 at 64, 0.5 at 256
  result = Extrapolation(50, 5, (64, 256), (0.8, 0.51), law, None)
  assert result.errors(law) == pytest.approx([0.25, -1 / 51])
  assert result.describe(law) == (
    "errors up to 25.00% at 2 points, -1.96% at the largest compute"
  )


def test_json_has_every_point_with_its_predictions():
  law = Law(8, 0.5, 0, False, 5, 0, 1)
  bent = Law(8, 0.5, 1, True, 5, 0, 1)
  content = Extrapolation(50, 5, (64, 256), (0.8, 0.5), law, bent).to_json()
  assert json.loads(json.dumps(content)) == content
  assert content["threshold"] == 50 and content["fitted_points"] == 5
  assert content["power_law"] == law.to_json()
  assert content["offset_law"] == bent.to_json()
  first, last = content["points"]
  assert first == {
    "compute": 64,
    "loss": 0.8,
    "power_law": {"predicted": 1, "error": pytest.approx(0.25)},
    "offset_law": {"predicted": 2, "error": pytest.approx(1.5)},
  }
  assert last["power_law"] == {"predicted": 0.5, "error": 0}


def test_bootstraps_only_the_points_below():
  noise = np.exp(np.random.default_rng(0).normal(0, 0.02, 7))
  options = {"loss": LOSS * noise, "threshold": 4.0**5, "resamples": 5}
  first, again, different = (
    predict(**options, seed=seed) for seed in (0, 0, 1)
  )
  assert (
    first == again
    and first.power.bootstrap_samples != different.power.bootstrap_samples
  )
  assert (
    len(first.power.bootstrap_samples)
    == len(first.offset.bootstrap_samples)
    == 5
  )
  by_hand = power_laws.bootstrap_law(
    power_laws.fit_power_law(COMPUTE[:5], options["loss"][:5]),
    COMPUTE[:5],
    options["loss"][:5],
    resamples=5,
    seed=0,
  )
  assert first.power == by_hand


def test_papers_cheap_half_predicts_f7_plus_after_eight_epochs():
  compute, loss = paper_table(best=True)
  result = predict(compute, loss)
  assert 6_000 < result.threshold < 7_000 and len(result.compute) == 12
  assert result.compute[-1] == 106_600 and result.loss[-1] == 2.339
  for law in (result.power, result.offset):
    errors = np.abs(result.errors(law))
    assert errors[-1] < 0.01 and errors.max() < 0.02
