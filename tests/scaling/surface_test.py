import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from nfnets_tf.scaling import frontier, surface
from nfnets_tf.scaling.surface import Surface
from tests.support.tables import paper_table

# Floor, A, u, B, v and s.
TRUTHS = [
  (2.0, 0.2, 0.45, 0.5, 0.25, 0.9),
  (1.0, 0.5, 0.3, 0.3, 0.3, 1.0),
  (0.5, 1.5, 0.8, 0.1, 0.6, 1.2),
]
SIZES = [1e9, 2e9, 5e9, 8e9, 2e10]
EPOCHS = [0.25, 0.5, 1, 2, 4, 8]


def points_of(truth, sizes=SIZES, epochs=EPOCHS, noise=0.0):
  c, a, u, b, v, s = truth
  middle = np.exp(np.mean(np.log(sizes)))
  table = pd.DataFrame(
    [(n, e) for n in sizes for e in epochs], columns=["n", "epochs"]
  )
  loss = c + a * (table["n"] / middle) ** -u + b * table["epochs"] ** -v
  factors = np.exp(np.random.default_rng(0).normal(0, noise, len(table)))
  compute = 7 * table["n"] ** s * table["epochs"]
  return table.assign(loss=loss * factors, compute=compute)


def values(found):
  names = ("floor", "of_size", "u", "of_epochs", "v", "s")
  return tuple(getattr(found, name) for name in names)


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_the_coefficients_behind_the_losses_are_found(truth):
  points = points_of(truth)
  found = surface.fit_surface(points, size="n")
  assert values(found) == pytest.approx(truth, rel=0.01)
  assert found.points == 30 and found.rms < 1e-6 and found.draws == ()
  middle = np.prod([n / 1e9 for n in SIZES]) ** (1 / 5) * 1e9
  assert found.reference_size == pytest.approx(middle)
  predicted = found.predict(points["n"], points["epochs"])
  np.testing.assert_allclose(predicted, points["loss"], rtol=1e-6)


def test_predictions_are_the_sum_of_three_parts():
  found = Surface(2, 0.5, 1, 0.3, 0.5, 1, 10, 9, 0)
  # The floor, half of 10 / N, and 0.3 by the root of E.
  predicted = found.predict([10, 20, 5], [1, 4, 0.25])
  assert predicted == pytest.approx([2.8, 2.4, 3.6])


def test_no_other_descent_goes_lower():
  points = points_of(TRUTHS[0], noise=0.01)
  found = surface.fit_surface(points, size="n")
  scaled = np.log(points["n"] / found.reference_size)
  epochs, loss = np.log(points["epochs"]), np.log(points["loss"])

  def rms(p):
    parts = np.exp(p[1] - p[2] * scaled) + np.exp(p[3] - p[4] * epochs)
    total = np.maximum(p[0], 0) + parts
    return np.sqrt(np.mean((np.log(total) - loss) ** 2))

  here = [found.floor, np.log(found.of_size), found.u]
  here += [np.log(found.of_epochs), found.v]
  assert found.rms == pytest.approx(rms(here))
  for start in (here, [1.8, -1, 0.3, -1, 0.3]):
    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-6, "fatol": 1e-10}
    other = optimize.minimize(rms, start, method="Nelder-Mead", options=options)
    assert found.rms <= other.fun * (1 + 1e-4)


def test_a_surface_takes_eight_points_three_sizes_and_three_epochs():
  points = points_of(TRUTHS[0])

  def fits(table):
    return surface.fit_surface(table, size="n") is not None

  three = points[points["n"].isin(SIZES[:3])]
  assert fits(three) and fits(three.iloc[::2].iloc[:8])
  assert not fits(three.iloc[::2].iloc[:7])
  assert not fits(points[points["n"].isin(SIZES[:2])])
  assert not fits(points[points["epochs"].isin(EPOCHS[:2])])
  assert not fits(points.iloc[:0])
  assert (
    surface.bootstrap_surface(None, points, size="n", resamples=3, seed=0)
    is None
  )


def test_rows_that_lack_a_number_are_left_out():
  points = points_of(TRUTHS[0])
  found = surface.fit_surface(points, size="n")
  for column in ("n", "epochs", "loss", "compute"):
    more = points.iloc[[0, 1]].assign(**{column: np.nan})
    assert surface.fit_surface(pd.concat([points, more]), size="n") == found
  zero = points.iloc[[0]].assign(epochs=0)
  assert surface.fit_surface(pd.concat([points, zero]), size="n") == found


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_the_exponents_are_those_of_the_lowest_loss_at_a_compute(truth):
  *_, s = truth
  found = surface.fit_surface(points_of(truth), size="n")
  told = found.to_json()
  p, q = (told[n]["value"] for n in ("size_exponent", "epochs_exponent"))
  assert found.s * p + q == pytest.approx(1)
  assert told["epochs_minus_size"]["value"] == pytest.approx(q - p)

  def best(log_compute):
    def loss(log_n):
      epochs = np.exp(log_compute) / np.exp(log_n) ** found.s
      return float(found.predict(np.exp(log_n), epochs))

    options = {"xatol": 1e-9}
    return optimize.minimize_scalar(
      loss, bounds=(0, 60), method="bounded", options=options
    ).x

  low, high = np.log(7e9**s), np.log(7e12**s)
  assert (best(high) - best(low)) / (high - low) == pytest.approx(p, rel=1e-3)


def test_draws_are_seeded_and_around_the_fit():
  points = points_of(TRUTHS[0], noise=0.002)
  points["compute"] *= points_of(TRUTHS[1], noise=0.1)["loss"]
  fit = surface.fit_surface(points, size="n")

  def draw(seed):
    return surface.bootstrap_surface(
      fit, points, size="n", resamples=8, seed=seed
    )

  found = draw(0)
  assert found == draw(0) and found.draws != draw(1).draws
  assert values(found) == values(fit)
  drawn = np.array(found.draws)
  assert drawn.shape == (8, 6)
  assert (drawn.min(axis=0) < values(fit)).all()
  assert (values(fit) < drawn.max(axis=0)).all()
  told = found.to_json()
  assert told["resamples"] == 8
  p = drawn[:, 4] / (drawn[:, 2] + drawn[:, 5] * drawn[:, 4])
  assert told["size_exponent"]["interval"] == pytest.approx(
    np.percentile(p, [2.5, 97.5])
  )
  assert told["v"]["interval"] == pytest.approx(
    np.percentile(drawn[:, 4], [2.5, 97.5])
  )


def test_losses_without_noise_leave_nothing_to_draw():
  points = points_of(TRUTHS[0])
  fit = surface.fit_surface(points, size="n")
  found = surface.bootstrap_surface(fit, points, size="n", resamples=4, seed=0)
  for draw in found.draws:
    assert draw == pytest.approx(TRUTHS[0], rel=0.05)


def test_a_file_tells_every_coefficient():
  told = Surface(2, 0.5, 0.4, 0.3, 0.2, 1.5, 10, 9, 0.01).to_json()
  assert json.loads(json.dumps(told)) == told

  def value(number):
    return {"value": pytest.approx(number), "interval": None}

  assert told == {
    "form": "L = c + A (N / N0)^-u + B E^-v",
    "floor": value(2),
    "of_size": value(0.5),
    "u": value(0.4),
    "of_epochs": value(0.3),
    "v": value(0.2),
    "s": value(1.5),
    "size_exponent": value(0.2 / 0.7),
    "epochs_exponent": value(0.4 / 0.7),
    "epochs_minus_size": value(0.2 / 0.7),
    "reference_size": 10,
    "points": 9,
    "rms_log_residual": 0.01,
    "resamples": 0,
  }


def test_the_papers_surface_agrees_with_its_optima():
  points = paper_table()
  found = surface.fit_surface(points, size="macs")
  assert found.points == 36 and found.rms < 0.01
  assert 0 < found.floor < points["loss"].min()
  told = found.to_json()
  p, q = (told[n]["value"] for n in ("size_exponent", "epochs_exponent"))
  assert 0.2 < p < q < 0.8 and found.s * p + q == pytest.approx(1)
  optima = frontier.fit_exponents(
    frontier.optimal_allocation(points, size="macs", budgets=12)
  )
  assert (p, q) == pytest.approx((optima.p, optima.q), abs=0.05)
