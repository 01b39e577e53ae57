"""Training compute, and its prediction in TPU-v4 core-hours."""

import math

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.scaling import compute, paper_data
from nfnets_tf.scaling.compute import TpuV4

SIX = ["F0", "F1", "F3", "F3+", "F7", "F7+"]
# By an independent counter: millions of parameters with 30,000 classes, and
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


def hours_of(macs, images, utilization):
  return 6 * macs * images / (utilization * PEAK) / 3600


def synthetic(utilization, noise=()):
  """Points whose hours imply a utilization."""
  rows = [
    {"model": model, "epochs": epochs, "macs": (i + 1) * 10**9}
    for i, model in enumerate(utilization)
    for epochs in (0.5, 1, 4)
  ]
  hours = [
    hours_of(r["macs"], r["epochs"] * 1e6, utilization[r["model"]])
    for r in rows
  ]
  factors = noise or np.ones(len(rows))
  return pd.DataFrame(rows).assign(tpu_v4_core_hours=hours * np.array(factors))


def test_published_hours_are_those_of_figure_2():
  tpu = TpuV4(utilization=0.3)
  table = paper_data.heldout_losses()
  for row in table.itertuples():
    hours = tpu.published_core_hours(row.model, row.epochs)
    assert hours == row.tpu_v4_core_hours and isinstance(hours, int)
  assert tpu.published_core_hours("F0", 8) == 12_945
  assert tpu.published_core_hours("F7+", 0.25) == 3_307


def test_unpublished_points_have_no_hours():
  tpu = TpuV4(utilization=0.3)
  assert tpu.published_core_hours("F2", 1) is None
  assert tpu.published_core_hours("F0", 3) is None


def test_training_takes_six_flops_per_mac_and_image():
  tpu = TpuV4(utilization=0.3)
  assert compute.training_flops(10, 7) == tpu.flops(10, 7) == 2 * 3 * 10 * 7


def test_core_hours_match_calculation_by_hand():
  # 1e9 MACs * 6 FLOPs * 1.375e9 images at 137.5 TFLOP/s: 60,000 seconds.
  hours = TpuV4(utilization=0.5).core_hours(10**9, 1.375e9)
  assert hours == pytest.approx(2 * 60_000 / 3600)


def test_unknown_variant_has_the_geometric_mean_utilization():
  given = {"F0": 0.2, "F1": 0.8}
  tpu = TpuV4(utilization=given)
  given["F0"] = 0.9  # stays with the caller
  assert [tpu.utilization_of(v) for v in ("F0", "F1")] == [0.2, 0.8]
  for unknown in ("F2", None):
    assert tpu.utilization_of(unknown) == pytest.approx(0.4)
  hours = {v: tpu.core_hours(10**9, 1e9, v) for v in ("F0", "F1", None)}
  assert hours["F0"] == pytest.approx(hours_of(1e9, 1e9, 0.2))
  assert hours["F1"] == pytest.approx(hours_of(1e9, 1e9, 0.8))
  assert hours[None] == pytest.approx(hours_of(1e9, 1e9, 0.4))
  assert TpuV4(utilization=0.3).utilization_of("F0") == 0.3


@pytest.mark.parametrize(
  "bad",
  [0, -0.1, 1.01, math.nan, "0.3", None, [0.3], {}, {"F0": 0}, {"F0": "a"}],
  ids=repr,
)
def test_refuses_utilization_outside_0_to_1(bad):
  with pytest.raises(
    UserError, match=r"TpuV4\.utilization = .* a number > 0 and <= 1"
  ):
    TpuV4(utilization=bad)


def test_mean_utilization_is_geometric():
  assert compute.mean_utilization([0.2, 0.8]) == pytest.approx(0.4)
  assert compute.mean_utilization({"a": 0.3}.values()) == pytest.approx(0.3)


def test_accepts_the_whole_peak():
  assert TpuV4(utilization=1).utilization_of("F0") == 1


def test_calibrate_recovers_utilization():
  expected = {"B": 0.25, "A": 0.4}
  points = synthetic(expected)
  utilization = compute.calibrate(points, images_per_epoch=1e6)
  assert list(utilization) == ["B", "A"] and utilization == pytest.approx(
    expected
  )
  # Hours 10 % above and below in ratio cancel: the mean is the geometric.
  points = synthetic(expected, noise=[1.1, 1 / 1.1, 1, 2, 2, 1 / 4])
  utilization = compute.calibrate(points, images_per_epoch=1e6)
  assert utilization == pytest.approx(expected)


def test_calibrated_tpu_predicts_the_hours():
  points = synthetic({"A": 0.25, "B": 0.4})
  tpu = TpuV4(utilization=compute.calibrate(points, images_per_epoch=1e6))
  for row in points.itertuples():
    hours = tpu.core_hours(row.macs, row.epochs * 1e6, row.model)
    assert hours == pytest.approx(row.tpu_v4_core_hours)


def geometric(values):
  return math.prod(values) ** (1 / len(values))


def test_predictions_equal_naive_loop():
  noise = np.exp(np.random.default_rng(0).normal(0, 0.1, 9)).tolist()
  points = synthetic({"A": 0.2, "B": 0.3, "C": 0.4}, noise)
  points = points.iloc[[5, 0, 8, 3, 1, 2, 4, 7, 6]]  # in no order
  table = compute.predict_core_hours(points, images_per_epoch=1e6)
  rows = list(points.itertuples())
  implied = [
    6 * r.macs * r.epochs * 1e6 / (r.tpu_v4_core_hours * 3600) / PEAK
    for r in rows
  ]
  of_model = {
    m: geometric([s for s, r in zip(implied, rows) if r.model == m])
    for m in "ABC"
  }
  mean = geometric(list(of_model.values()))
  for i, (row, prediction) in enumerate(zip(rows, table.itertuples())):
    rest = geometric(
      [
        s
        for j, s in enumerate(implied)
        if rows[j].model == row.model and j != i
      ]
    )
    images, measured = row.epochs * 1e6, row.tpu_v4_core_hours
    by_model = hours_of(row.macs, images, of_model[row.model])
    without_it = hours_of(row.macs, images, rest)
    by_flops = hours_of(row.macs, images, mean)
    by_smallest = hours_of(row.macs, images, of_model["A"])
    assert tuple(prediction)[1:] == pytest.approx(
      (
        row.model,
        row.epochs,
        measured,
        implied[i],
        by_model,
        by_model / measured - 1,
        without_it / measured - 1,
        by_flops,
        by_flops / measured - 1,
        by_smallest,
        by_smallest / measured - 1,
      )
    )


def test_single_point_has_no_leave_one_out_error():
  for hours in range(100, 140):  # rounding once made some of them infinite
    points = pd.DataFrame(
      {"model": "A", "macs": 10**9, "epochs": [1], "tpu_v4_core_hours": hours}
    )
    table = compute.predict_core_hours(points, images_per_epoch=4e9)
    assert np.isnan(table["leave_one_out_error"][0])
    assert table["by_model_error"][0] == pytest.approx(0, abs=1e-12)


def test_papers_hours_imply_a_third_of_the_peak():
  utilization = compute.paper_utilization()
  assert list(utilization) == SIX
  assert 0.28 < utilization["F0"] < 0.30 and 0.35 < utilization["F7+"] < 0.38
  assert all(0.28 < value < 0.38 for value in utilization.values())


def test_predicts_papers_hours_to_a_few_percent():
  points = paper_data.heldout_losses()
  table = compute.predict_core_hours(
    points, images_per_epoch=paper_data.JFT_4B_IMAGES
  )
  # Digitized to 1.5 %: a model's other points predict its hours, except for
  # the cheapest, which were rounded by eye.
  errors = table["leave_one_out_error"].abs()
  assert errors.max() < 0.05 and (errors > 0.03).sum() <= 2
  # FLOPs alone predict them less well.
  assert 0.1 < table["by_flops_error"].abs().max() < 0.15
  # F0's hours give too many for every larger network, least for F1.
  larger = table[table["model"] != "F0"].groupby("model")["by_smallest_error"]
  assert 0.08 < larger.mean()["F1"] == larger.mean().min()
  assert 0.28 > larger.mean()["F7+"] == larger.mean().max()


def test_f0_sizes_match_the_network():
  row = paper_data.models().set_index("model").loc["F0"]
  network = cost.abstractly(lambda: NFNet("F0", 30_000))
  assert row["macs"] == cost.count_macs(network, 224)
  assert row["parameters"] == sum(cost.count_parameters(network))


@pytest.mark.parametrize("row", paper_data.models().to_dict("records"))
def test_sizes_match_independent_count(row):
  parameters, macs = COUNTED[row["model"]]
  assert round(row["parameters"] / 1e6, 1) == parameters
  features = 4096 if "+" in row["model"] else 3072
  small_head = row["macs"] - 29_000 * features
  assert round(small_head / 1e9, 1) == macs


def program(network="F0", cores=16, images=512, peak=20e9, **other):
  """A row of the table of compiled programs."""
  row = dict.fromkeys(compute.PROGRAM_COLUMNS, 1)
  row |= {
    "network": network,
    "num_classes": 1000,
    "image_size": 224,
    "policy": "mixed_bfloat16",
    "recompute": "none",
    "optimizer": "SGD",
    "sam": "none",
    "ema": 0,
    "step": "train",
    "slice": f"v4-{cores}",
    "batch_per_chip": images,
    "peak_bytes": int(peak),
    "fits": int(peak < 30.75 * 2**30),
    "flops": 6e10 * images,
    "source": "compiled",
    "compiler": "libtpu 1.2",
    "date": "2026-11-26",
  }
  return row | other


@pytest.fixture
def programs(tmp_path, monkeypatch):
  """Replaces the package's table by given rows."""

  def write(*rows):
    pd.DataFrame(rows).to_csv(tmp_path / "programs.csv", index=False)
    monkeypatch.setattr(compute, "PROGRAMS", tmp_path / "programs.csv")

  return write


F0 = cost.abstractly(lambda: NFNet("F0", 1000))


def describe(network=F0, batch_size=4096, **other):
  options = {
    "image_size": 224,
    "policy": "mixed_bfloat16",
    "optimizer": "SGD",
    "sam": None,
    "micro_batches": 1,
    "ema_decay": None,
  }
  return TpuV4(utilization={"F0": 0.25, "F1": 0.5}).describe_program(
    network, batch_size=batch_size, images=10**9, **{**options, **other}
  )


def test_the_smallest_slice_that_holds_a_run(programs):
  programs(
    program(cores=64, images=128, peak=9e9),
    program(cores=8, images=1024, peak=40e9),
    program(cores=16, images=512, peak=20.04e9),
    program(cores=16, images=256, peak=11e9),
  )
  memory, hours = describe()
  assert "20.0 GB of a chip's 33.0 GB on v4-16" in memory
  assert "512 images a chip" in memory
  assert "compiled 2026-11-26 for v4-16 with libtpu 1.2" in memory
  # 6e10 FLOPs an image at a quarter of the peak.
  expected = 6e10 * 1e9 / (0.25 * PEAK) / 3600
  assert hours.startswith(f"{expected:,.0f} TPU-v4 core-hours")
  # A chip needs the same for its images on another slice.
  half = describe(batch_size=2048)[0]
  assert half.startswith("20.0 GB") and "on v4-8," in half


def test_a_run_that_no_slice_holds(programs):
  programs(program(cores=8, images=1024, peak=40e9))
  (text,) = describe()
  assert "40.0 GB on v4-8, more than a chip's 33.0 GB" in text
  assert "nfnet.NFNet.recompute = True" in text


@pytest.mark.parametrize(
  "run",
  [
    {"network": cost.abstractly(lambda: NFNet("femto", 1000))},
    {"network": cost.abstractly(lambda: NFNet("F0", 10))},
    {
      "network": cost.abstractly(
        lambda: NFNet("F0", 1000, recompute=["stage1"])
      )
    },
    {"batch_size": 1024},  # two chips are no slice
    {"image_size": 256},
    {"policy": "float32"},
    {"optimizer": "AdamW"},
    {"sam": SAM()},
    {"micro_batches": 2},
    {"ema_decay": 0.9},
    {"step": "eval"},
  ],
  ids=lambda run: next(iter(run)),
)
def test_another_run_is_not_in_the_table(programs, run):
  programs(program())
  (text,) = describe(**run)
  batch_size = run.get("batch_size", 4096)
  assert (
    f"tools.tpu_check compile --gin_file=... --slice=v4-{batch_size // 16}"
    in text
  )


@pytest.mark.parametrize(
  "network, sam, words",
  [
    (
      lambda: NFNet("femto", 3, recompute=True),
      SAM(0.1, scope="global"),
      ("femto", "all", "global"),
    ),
    (
      lambda: NFNet(
        "femto", 3, recompute=["stage2", "stage1"], bottleneck_rule="published"
      ),
      SAM(ascent_fraction=0.2, every=2),
      ("femto published", "stage1+stage2", "replica ascent=0.2 every=2"),
    ),
  ],
)
def test_names_of_a_program(network, sam, words):
  key = compute.program_key(
    cost.abstractly(network),
    image_size=32,
    policy="float32",
    optimizer="SGD",
    sam=sam,
    micro_batches=1,
    ema_decay=None,
  )
  assert (key["network"], key["recompute"], key["sam"]) == words


def test_table_of_the_package_is_whole():
  table = compute.compiled_programs()
  assert tuple(table.columns) == compute.PROGRAM_COLUMNS
  key = [*table.columns[: table.columns.get_loc("batch_per_chip") + 1]]
  assert not table.duplicated(key).any()
  usable = table["peak_bytes"] <= compute.TPU_V4_USABLE_BYTES
  assert (usable == (table["fits"] == 1)).all()
