import math

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.scaling import compute, paper_points
from nfnets_tf.scaling.compute import TpuV4

SIX = ["F0", "F1", "F3", "F3+", "F7", "F7+"]
# What a second counter found: millions of parameters with 30,000 classes, and
# billions of MACs at 224 px with 1,000.
COUNTED = {
  "F0": (160.6, 9.5),
  "F1": (221.8, 17.4),
  "F3": (344.0, 33.3),
  "F3+": (542.2, 51.7),
  "F7": (588.6, 65.1),
  "F7+": (948.4, 100.7),
}
PEAK = 137.5e12


def hours_of(macs, images, share):
  return 6 * macs * images / (share * PEAK) / 3600


def synthetic(shares, noise=()):
  """Points whose hours mean a share of the peak, and the MACs."""
  macs = {model: (i + 1) * 10**9 for i, model in enumerate(shares)}
  rows = [
    {"model": model, "epochs": epochs}
    for model in shares
    for epochs in (0.5, 1, 4)
  ]
  hours = [
    hours_of(macs[r["model"]], r["epochs"] * 1e6, shares[r["model"]])
    for r in rows
  ]
  factors = noise or np.ones(len(rows))
  points = pd.DataFrame(rows).assign(
    tpu_v4_core_hours=hours * np.array(factors)
  )
  return points, macs


def test_hours_are_those_of_the_papers_figure_2():
  tpu = TpuV4(utilisation=0.3)
  table = paper_points.heldout_losses()
  for row in table.itertuples():
    hours = tpu.published_core_hours(row.model, row.epochs)
    assert hours == row.tpu_v4_core_hours and isinstance(hours, int)
  assert tpu.published_core_hours("F0", 8) == 12_945
  assert tpu.published_core_hours("F7+", 0.25) == 3_307


def test_points_that_the_paper_has_not_are_none():
  tpu = TpuV4(utilisation=0.3)
  assert tpu.published_core_hours("F2", 1) is None
  assert tpu.published_core_hours("F0", 3) is None


def test_a_mac_is_two_flops_and_training_is_three_passes():
  tpu = TpuV4(utilisation=0.3)
  assert compute.training_flops(10, 7) == tpu.flops(10, 7) == 2 * 3 * 10 * 7


def test_core_hours_by_hand():
  # 1e9 MACs * 6 FLOPs * 1.375e9 images at 137.5 TFLOP/s: 60,000 seconds.
  hours = TpuV4(utilisation=0.5).core_hours(10**9, 1.375e9)
  assert hours == pytest.approx(2 * 60_000 / 3600)


def test_utilisation_is_of_the_variant_else_the_geometric_mean():
  given = {"F0": 0.2, "F1": 0.8}
  tpu = TpuV4(utilisation=given)
  given["F0"] = 0.9  # stays with the caller
  assert [tpu.utilisation_of(v) for v in ("F0", "F1")] == [0.2, 0.8]
  for unknown in ("F2", None):
    assert tpu.utilisation_of(unknown) == pytest.approx(0.4)
  hours = {v: tpu.core_hours(10**9, 1e9, v) for v in ("F0", "F1", None)}
  assert hours["F0"] == pytest.approx(hours_of(1e9, 1e9, 0.2))
  assert hours["F1"] == pytest.approx(hours_of(1e9, 1e9, 0.8))
  assert hours[None] == pytest.approx(hours_of(1e9, 1e9, 0.4))
  assert TpuV4(utilisation=0.3).utilisation_of("F0") == 0.3


@pytest.mark.parametrize(
  "bad",
  [0, -0.1, 1.01, math.nan, "0.3", None, [0.3], {}, {"F0": 0}, {"F0": "a"}],
  ids=repr,
)
def test_what_is_no_share_of_the_peak_is_refused(bad):
  with pytest.raises(UserError) as caught:
    TpuV4(utilisation=bad)
  assert str(caught.value) == (
    f"TpuV4.utilisation = {bad!r} cannot be used; bind it to a share of the"
    " peak above 0 and up to 1, or to {variant: share}."
  )


def test_ratios_above_and_below_cancel_in_the_mean():
  assert compute.mean_utilisation([0.2, 0.8]) == pytest.approx(0.4)
  assert compute.mean_utilisation({"a": 0.3}.values()) == pytest.approx(0.3)


def test_the_whole_peak_is_a_share():
  assert TpuV4(utilisation=1).utilisation_of("F0") == 1


def test_calibration_finds_the_share_behind_the_hours():
  shares = {"B": 0.25, "A": 0.4}
  points, macs = synthetic(shares)
  found = compute.calibrate(points, macs, images_per_epoch=1e6)
  assert list(found) == ["B", "A"] and found == pytest.approx(shares)
  # Hours 10 % above and below in ratio cancel: the mean is the geometric.
  points, macs = synthetic(shares, noise=[1.1, 1 / 1.1, 1, 2, 2, 1 / 4])
  found = compute.calibrate(points, macs, images_per_epoch=1e6)
  assert found == pytest.approx(shares)


def test_a_calibrated_tpu_predicts_the_hours():
  points, macs = synthetic({"A": 0.25, "B": 0.4})
  tpu = TpuV4(utilisation=compute.calibrate(points, macs, images_per_epoch=1e6))
  for row in points.itertuples():
    hours = tpu.core_hours(macs[row.model], row.epochs * 1e6, row.model)
    assert hours == pytest.approx(row.tpu_v4_core_hours)


@pytest.mark.parametrize(
  "function", [compute.calibrate, compute.predict_core_hours]
)
def test_points_of_unknown_macs_are_refused_by_name(function):
  points, macs = synthetic({"A": 0.25, "Z": 0.4, "B": 0.3})
  with pytest.raises(UserError) as caught:
    function(points, {"A": macs["A"]}, images_per_epoch=1e6)
  assert str(caught.value) == (
    "the MACs of B, Z are not known, only those of A; give them, or leave out"
    " the points."
  )


def geometric(values):
  return math.prod(values) ** (1 / len(values))


def test_predictions_are_those_of_a_loop():
  noise = np.exp(np.random.default_rng(0).normal(0, 0.1, 9)).tolist()
  points, macs = synthetic({"A": 0.2, "B": 0.3, "C": 0.4}, noise)
  points = points.iloc[[5, 0, 8, 3, 1, 2, 4, 7, 6]]  # in no order
  table = compute.predict_core_hours(points, macs, images_per_epoch=1e6)
  rows = list(points.itertuples())
  share = [
    6 * macs[r.model] * r.epochs * 1e6 / (r.tpu_v4_core_hours * 3600) / PEAK
    for r in rows
  ]
  of_model = {
    m: geometric([s for s, r in zip(share, rows) if r.model == m]) for m in macs
  }
  mean = geometric(list(of_model.values()))
  for i, (row, found) in enumerate(zip(rows, table.itertuples())):
    others = geometric(
      [s for j, s in enumerate(share) if rows[j].model == row.model and j != i]
    )
    images, measured = row.epochs * 1e6, row.tpu_v4_core_hours
    by_model = hours_of(macs[row.model], images, of_model[row.model])
    left_out = hours_of(macs[row.model], images, others)
    by_flops = hours_of(macs[row.model], images, mean)
    assert tuple(found)[1:] == pytest.approx(
      (
        row.model,
        row.epochs,
        measured,
        share[i],
        by_model,
        by_model / measured - 1,
        left_out / measured - 1,
        by_flops,
        by_flops / measured - 1,
      )
    )


def test_a_single_point_has_none_left_to_predict_it():
  for hours in range(100, 140):  # rounding once made some of them infinite
    points = pd.DataFrame(
      {"model": ["A"], "epochs": [1], "tpu_v4_core_hours": [hours]}
    )
    table = compute.predict_core_hours(
      points, {"A": 10**9}, images_per_epoch=4e9
    )
    assert np.isnan(table["left_out_error"][0])
    assert table["by_model_error"][0] == pytest.approx(0, abs=1e-12)


def test_the_papers_hours_mean_about_a_third_of_the_peak():
  found = compute.paper_utilisation()
  assert list(found) == SIX
  assert 0.28 < found["F0"] < 0.30 and 0.35 < found["F7+"] < 0.38
  assert all(0.28 < share < 0.38 for share in found.values())


def test_the_papers_hours_are_predicted_to_a_few_percent():
  points = paper_points.heldout_losses()
  table = compute.predict_core_hours(
    points, compute.paper_macs(), images_per_epoch=paper_points.JFT_4B_IMAGES
  )
  # Digitized to 1.5 %: a model's own other points tell its hours, but for the
  # cheapest, that were rounded by eye.
  errors = table["left_out_error"].abs()
  assert errors.max() < 0.05 and (errors > 0.03).sum() <= 2
  # FLOPs alone tell them less well.
  assert 0.1 < table["by_flops_error"].abs().max() < 0.15


def test_f0_has_the_counted_parameters_and_macs():
  row = paper_points.models().set_index("model").loc["F0"]
  network = cost.abstractly(lambda: NFNet("F0", 30_000))
  assert row["macs"] == cost.count_macs(network, 224)
  assert row["parameters"] == sum(cost.count_parameters(network))
  assert compute.paper_macs()["F0"] == row["macs"]


@pytest.mark.parametrize("row", paper_points.models().to_dict("records"))
def test_sizes_are_those_of_a_second_counter(row):
  parameters, macs = COUNTED[row["model"]]
  assert round(row["parameters"] / 1e6, 1) == parameters
  features = 4096 if "+" in row["model"] else 3072
  small_head = row["macs"] - 29_000 * features
  assert round(small_head / 1e9, 1) == macs
