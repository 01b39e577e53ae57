import csv
import pathlib

import pytest

from nfnets_tf.scaling import compute

FIGURE_2 = pathlib.Path(__file__).parents[1] / "testdata/fig2_heldout_loss.csv"


def test_hours_are_those_of_the_papers_figure_2():
  with FIGURE_2.open() as file:
    rows = list(csv.DictReader(file))
  table = compute.FIGURE_2_CORE_HOURS
  assert sum(map(len, table.values())) == len(rows) == 36
  for row in rows:
    hours = compute.TpuV4(utilisation=0.3).published_core_hours(
      row["model"], float(row["epochs"])
    )
    assert hours == float(row["tpu_v4_core_hours"])


def test_core_hours_by_hand():
  # 1e9 MACs * 6 FLOPs * 1.375e9 images at 137.5 TFLOP/s: 60,000 seconds.
  hours = compute.TpuV4(utilisation=0.5).core_hours(10**9, 1.375e9)
  assert hours == pytest.approx(2 * 60_000 / 3600)


def test_the_papers_hours_mean_about_a_third_of_the_peak():
  shares = [
    compute.training_flops(macs, 32e9) / (hours * 3600 * 137.5e12)
    for macs, hours in ((9.58e9, 12_945), (100.86e9, 106_600))
  ]
  assert 0.27 < shares[0] < 0.30 and 0.35 < shares[1] < 0.38


def test_points_that_the_paper_has_not_are_none():
  tpu = compute.TpuV4(utilisation=0.3)
  assert tpu.published_core_hours("F2", 1) is None
  assert tpu.published_core_hours("F0", 3) is None
