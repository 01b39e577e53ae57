import json

import numpy as np
import pytest

from nfnets_tf.scaling import held_back, laws
from nfnets_tf.scaling.held_back import HeldBack
from tests.support.tables import paper_table

# L = 8 C^-0.5: at 1, 4, 16 and so on 8, 4, 2 ...
COMPUTE = [4.0**i for i in range(7)]
LOSS = [8.0 / 2**i for i in range(7)]


def predict(compute=COMPUTE, loss=LOSS, threshold=None, resamples=0, seed=0):
  return held_back.predict_held_back(
    compute, loss, threshold=threshold, resamples=resamples, seed=seed
  )


def test_what_is_held_back_is_not_fitted():
  # From 4^5 on losses are twice as high as cheaper ones say.
  loss = LOSS[:5] + [2 * y for y in LOSS[5:]]
  found = predict(loss=loss, threshold=4.0**5)
  assert found.fitted_points == 5 and found.threshold == 4.0**5
  assert found.compute == (4.0**5, 4.0**6)
  assert found.loss == tuple(loss[5:])
  for law in (found.power, found.offset):
    assert (law.a, law.b, law.points) == (
      pytest.approx(8, rel=1e-5),
      pytest.approx(0.5, rel=1e-5),
      5,
    )
    # Predicted / measured - 1: half of it is lacking.
    assert found.errors(law) == pytest.approx([-0.5, -0.5], rel=1e-4)


def test_the_order_of_the_points_does_not_matter():
  shuffled = np.random.default_rng(0).permutation(7)
  compute, loss = np.array(COMPUTE)[shuffled], np.array(LOSS)[shuffled]
  assert predict(compute, loss, resamples=3) == predict(resamples=3)


def test_half_the_range_is_held_back_if_nothing_is_said():
  found = predict()
  assert found.threshold == pytest.approx(4.0**3)
  # The point at the threshold is held back.
  assert found.compute == tuple(COMPUTE[3:]) and found.fitted_points == 3
  assert found.power is not None and found.offset is None  # takes four


def test_nothing_above_the_threshold_says_so():
  found = predict(threshold=1e9)
  assert found.fitted_points == 7 and found.compute == found.loss == ()
  assert found.describe(found.power) == "no points above"
  assert len(found.errors(found.power)) == 0
  assert found.to_json()["points"] == []


@pytest.mark.parametrize("threshold", [0.5, 4.0**2])
def test_too_few_points_below_give_no_law(threshold):
  found = predict(threshold=threshold, resamples=5)
  assert found.power is None and found.offset is None
  assert found.errors(found.power) is None
  assert found.describe(found.power) == "not enough points below"
  told = found.to_json()
  assert told["power_law"] is None and told["offset_law"] is None
  assert all(set(point) == {"compute", "loss"} for point in told["points"])


def test_no_points_at_all_are_no_error():
  found = predict([], [])
  assert found.compute == () and found.power is None


def test_the_largest_and_the_last_error_are_told():
  law = laws.Law(8, 0.5, 0, False, 5, 0, 1)  # 1 at 64, 0.5 at 256
  found = HeldBack(50, 5, (64, 256), (0.8, 0.51), law, None)
  assert found.errors(law) == pytest.approx([0.25, -1 / 51])
  assert found.describe(law) == (
    "25.00% at most of 2 points, -1.96% at the largest compute"
  )


def test_a_file_has_every_point_beside_its_predictions():
  law = laws.Law(8, 0.5, 0, False, 5, 0, 1)
  bent = laws.Law(8, 0.5, 1, True, 5, 0, 1)
  told = HeldBack(50, 5, (64, 256), (0.8, 0.5), law, bent).to_json()
  assert json.loads(json.dumps(told)) == told
  assert told["held_back_from"] == 50 and told["fitted_points"] == 5
  assert told["power_law"] == law.to_json()
  assert told["offset_law"] == bent.to_json()
  first, last = told["points"]
  assert first == {
    "compute": 64,
    "loss": 0.8,
    "power_law": {"predicted": 1, "error": pytest.approx(0.25)},
    "offset_law": {"predicted": 2, "error": pytest.approx(1.5)},
  }
  assert last["power_law"] == {"predicted": 0.5, "error": 0}


def test_intervals_come_from_seeded_draws_of_the_points_below():
  noise = np.exp(np.random.default_rng(0).normal(0, 0.02, 7))
  options = {"loss": LOSS * noise, "threshold": 4.0**5, "resamples": 5}
  one, again, other = (predict(**options, seed=seed) for seed in (0, 0, 1))
  assert one == again and one.power.draws != other.power.draws
  assert len(one.power.draws) == len(one.offset.draws) == 5
  by_hand = laws.bootstrap(
    laws.fit_power_law(COMPUTE[:5], options["loss"][:5]),
    COMPUTE[:5],
    options["loss"][:5],
    resamples=5,
    seed=0,
  )
  assert one.power == by_hand


def test_the_papers_cheap_half_predicts_f7_plus_after_eight_epochs():
  compute, loss = paper_table(best=True)
  found = predict(compute, loss)
  assert 6_000 < found.threshold < 7_000 and len(found.compute) == 12
  assert found.compute[-1] == 106_600 and found.loss[-1] == 2.339
  for law in (found.power, found.offset):
    errors = np.abs(found.errors(law))
    assert errors[-1] < 0.01 and errors.max() < 0.02
