"""The surface of loss over size and epochs."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from nfnets_tf.scaling import allocation
from nfnets_tf.scaling.allocation import Surface
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
    [(n, e) for n in sizes for e in epochs], columns=["size", "epochs"]
  )
  loss = c + a * (table["size"] / middle) ** -u + b * table["epochs"] ** -v
  factors = np.exp(np.random.default_rng(0).normal(0, noise, len(table)))
  compute = 7 * table["size"] ** s * table["epochs"]
  return table.assign(loss=loss * factors, compute=compute)


def values(surface):
  names = ("floor", "of_size", "u", "of_epochs", "v", "s")
  return tuple(getattr(surface, name) for name in names)


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_recovers_coefficients(truth):
  points = points_of(truth)
  surface = allocation.fit_surface(points)
  assert values(surface) == pytest.approx(truth, rel=0.01)
  assert (
    surface.points == 30
    and surface.rms < 1e-6
    and surface.bootstrap_samples == ()
  )
  middle = np.prod([n / 1e9 for n in SIZES]) ** (1 / 5) * 1e9
  assert surface.reference_size == pytest.approx(middle)
  predicted = surface.predict(points["size"], points["epochs"])
  np.testing.assert_allclose(predicted, points["loss"], rtol=1e-6)


def test_predicts_the_sum_of_three_terms():
  surface = Surface(2, 0.5, 1, 0.3, 0.5, 1, 10, 9, 0)
  # The floor, half of 10 / N, and 0.3 by the root of E.
  predicted = surface.predict([10, 20, 5], [1, 4, 0.25])
  assert predicted == pytest.approx([2.8, 2.4, 3.6])


def test_fit_beats_nelder_mead():
  points = points_of(TRUTHS[0], noise=0.01)
  surface = allocation.fit_surface(points)
  scaled = np.log(points["size"] / surface.reference_size)
  epochs, loss = np.log(points["epochs"]), np.log(points["loss"])

  def rms(p):
    parts = np.exp(p[1] - p[2] * scaled) + np.exp(p[3] - p[4] * epochs)
    total = np.maximum(p[0], 0) + parts
    return np.sqrt(np.mean((np.log(total) - loss) ** 2))

  here = [surface.floor, np.log(surface.of_size), surface.u]
  here += [np.log(surface.of_epochs), surface.v]
  assert surface.rms == pytest.approx(rms(here))
  for start in (here, [1.8, -1, 0.3, -1, 0.3]):
    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-6, "fatol": 1e-10}
    other = optimize.minimize(rms, start, method="Nelder-Mead", options=options)
    assert surface.rms <= other.fun * (1 + 1e-4)


def test_needs_eight_points_three_sizes_and_three_epochs():
  points = points_of(TRUTHS[0])

  def fits(table):
    return allocation.fit_surface(table) is not None

  three = points[points["size"].isin(SIZES[:3])]
  assert fits(three) and fits(three.iloc[::2].iloc[:8])
  assert not fits(three.iloc[::2].iloc[:7])
  assert not fits(points[points["size"].isin(SIZES[:2])])
  assert not fits(points[points["epochs"].isin(EPOCHS[:2])])
  assert not fits(points.iloc[:0])
  assert allocation.bootstrap_surface(None, points, resamples=3, seed=0) is None


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_exponents_minimize_the_loss_at_a_compute(truth):
  *_, s = truth
  surface = allocation.fit_surface(points_of(truth))
  content = surface.to_json()
  p, q = (content[n]["value"] for n in ("size_exponent", "epochs_exponent"))
  assert surface.s * p + q == pytest.approx(1)
  assert content["epochs_minus_size"]["value"] == pytest.approx(q - p)

  def best(log_compute):
    def loss(log_n):
      epochs = np.exp(log_compute) / np.exp(log_n) ** surface.s
      return float(surface.predict(np.exp(log_n), epochs))

    options = {"xatol": 1e-9}
    return optimize.minimize_scalar(
      loss, bounds=(0, 60), method="bounded", options=options
    ).x

  low, high = np.log(7e9**s), np.log(7e12**s)
  assert (best(high) - best(low)) / (high - low) == pytest.approx(p, rel=1e-3)


def test_samples_are_seeded_and_surround_the_fit():
  points = points_of(TRUTHS[0], noise=0.002)
  points["compute"] *= points_of(TRUTHS[1], noise=0.1)["loss"]
  fit = allocation.fit_surface(points)

  def draw(seed):
    return allocation.bootstrap_surface(fit, points, resamples=8, seed=seed)

  surface = draw(0)
  assert (
    surface == draw(0)
    and surface.bootstrap_samples != draw(1).bootstrap_samples
  )
  assert values(surface) == values(fit)
  samples = np.array(surface.bootstrap_samples)
  assert samples.shape == (8, 6)
  assert (samples.min(axis=0) < values(fit)).all()
  assert (values(fit) < samples.max(axis=0)).all()
  content = surface.to_json()
  assert content["resamples"] == 8
  p = samples[:, 4] / (samples[:, 2] + samples[:, 5] * samples[:, 4])
  assert content["size_exponent"]["interval"] == pytest.approx(
    np.percentile(p, [2.5, 97.5])
  )
  assert content["v"]["interval"] == pytest.approx(
    np.percentile(samples[:, 4], [2.5, 97.5])
  )


def test_noiseless_losses_give_narrow_samples():
  points = points_of(TRUTHS[0])
  fit = allocation.fit_surface(points)
  surface = allocation.bootstrap_surface(fit, points, resamples=4, seed=0)
  for draw in surface.bootstrap_samples:
    assert draw == pytest.approx(TRUTHS[0], rel=0.05)


def test_json_has_every_coefficient():
  content = Surface(2, 0.5, 0.4, 0.3, 0.2, 1.5, 10, 9, 0.01).to_json()
  assert json.loads(json.dumps(content)) == content

  def value(number):
    return {"value": pytest.approx(number), "interval": None}

  assert content == {
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


def test_papers_surface_agrees_with_its_optima():
  points = paper_table().rename(columns={"macs": "size"})
  surface = allocation.fit_surface(points)
  assert surface.points == 36 and surface.rms < 0.01
  assert 0 < surface.floor < points["loss"].min()
  content = surface.to_json()
  p, q = (content[n]["value"] for n in ("size_exponent", "epochs_exponent"))
  assert 0.2 < p < q < 0.8 and surface.s * p + q == pytest.approx(1)
  optima = allocation.fit_exponents(
    allocation.optimal_allocation(points, budgets=12)
  )
  assert (p, q) == pytest.approx((optima.p, optima.q), abs=0.05)
