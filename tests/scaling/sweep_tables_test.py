import csv
import math

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import RunError
from nfnets_tf.scaling import sweep_tables
from nfnets_tf.scaling.sweep import GridSearch, Sweep
from nfnets_tf.scaling.sweep_store import DONE, FAILED, RUNNING, Trial

GRID = [{"EPOCHS": e, "VARIANT": v} for e in (0.5, 8) for v in ("F0", "F7+")]
SIZES = {"F0": 68_436_584, "F7+": 948_364_960}


def figures(point):
  size, epochs = SIZES[point.bindings["VARIANT"]], point.bindings["EPOCHS"]
  images = int(4e9 * epochs)
  return {
    "parameters": size,
    "macs": 150 * size,
    "images": images,
    "steps": images // 4096,
    "epochs": float(epochs),
    "flops": 6.0 * 150 * size * images,
    "tpu_v4_core_hours": size * epochs / 7e4,
    "utilization": 1 / 3,
    "memory_bytes": 16 * size,
    "memory_bytes_per_image": size / 10,
  }


def make_sweep(tuned=False):
  search = GridSearch(
    macro="LR", start=0.1, factor=2, both_sides=True, most_trials=9
  )
  return Sweep(
    grid=GRID,
    tuning=search if tuned else None,
    engine=None,
    loss="loss",
    poll_seconds=1,
    price=None,
    report=None,
  )


POINTS = make_sweep().points


@pytest.mark.parametrize("price", [None, 0, 1.5])
def test_plan_has_a_row_for_each_point(price):
  plan = sweep_tables.plan_table(POINTS, figures, price)
  for row, point in zip(plan.to_dict("records"), POINTS):
    expected = {"point": point.name, **point.bindings, **figures(point)}
    if price is not None:
      expected["cost"] = price * figures(point)["tpu_v4_core_hours"]
    assert row == expected
  assert len(plan) == len(POINTS)


def test_printed_plan_has_units_and_a_total():
  plan = sweep_tables.plan_table(POINTS, figures, 2.0)
  table, total = sweep_tables.describe_plan(plan, trials=3).split("\n\n")
  title, *rows = table.splitlines()
  assert len({len(line) for line in [title, *rows]}) == 1  # aligned
  head = "parameters GMACs images steps FLOPs core-hours of peak GB MB/image"
  assert title.split() == ["point", *head.split(), "cost"]
  assert (
    rows[0].split()
    == (
      "1 EPOCHS=0.5,VARIANT=F0 68,436,584 10.27 2,000,000,000 488,281 1.23e+20"
      " 488.8 33.3% 1.095 6.844 977.67"
    ).split()
  )
  assert rows[3].split()[6:8] == ["2.73e+22", "108,385"]
  hours = sum(SIZES.values()) * 8.5 / 7e4
  assert total == (
    "4 points, at least 3 trials each: 9.33e+22 FLOPs,"
    f" {3 * hours:,.0f} TPU-v4 core-hours, cost {6 * hours:,.2f}"
  )
  plan = sweep_tables.plan_table(POINTS, figures, None)
  text = sweep_tables.describe_plan(plan, trials=1)
  assert "cost" not in text and "trials" not in text
  assert "4 points: 3.11e+22 FLOPs" in text


def test_tables_survive_csv(tmp_path):
  r = np.random.default_rng(0)
  table = pd.DataFrame(
    {
      "point": [f'A="{i}", b,=' for i in range(1000)],
      "loss": r.random(1000) * 10.0 ** r.integers(-30, 30, 1000),
      "steps": r.integers(0, 2**53, 1000),
      "seconds": [None, 0.1] * 500,
    }
  )
  root = tmp_path / "new" / "sweep"
  path = str(root / "plan.csv")
  assert sweep_tables.read_table(path) is None
  sweep_tables.write_table(table, path)
  pd.testing.assert_frame_equal(
    sweep_tables.read_table(path), table, check_exact=True, check_dtype=False
  )
  with open(path) as file:  # any other program reads it as well
    rows = list(csv.DictReader(file))
  assert [float(row["loss"]) for row in rows] == table["loss"].tolist()
  assert [row["point"] for row in rows] == table["point"].tolist()


def test_unwritable_directory_is_reported(tmp_path):
  (tmp_path / "file").touch()
  root = str(tmp_path / "file")
  with pytest.raises(RunError, match="cannot be written"):
    sweep_tables.write_table(pd.DataFrame({"a": [1]}), f"{root}/a.csv")


def trial_at(point, rate, state, **outcome):
  name = f"{point.name},LR={rate}"
  bindings = {**point.bindings, "LR": rate}
  return Trial(name, point.name, bindings, state, **outcome)


def test_results_contain_costs_and_outcomes():
  sweep = make_sweep(tuned=True)
  plan = sweep_tables.plan_table(sweep.points, figures, 2.0)
  result = {"loss": 2.5, "sha": "ab", "none": None, "right": True}
  first, second, third, _ = sweep.points
  removed = Trial("EPOCHS=99,LR=0.1", "EPOCHS=99", {"EPOCHS": 99, "LR": 0.1})
  trials = [
    trial_at(first, 0.2, RUNNING),
    trial_at(first, 0.1, DONE, result=result, seconds=9.5),
    trial_at(first, 0.8, "pending"),  # interrupted, and no longer needed
    trial_at(second, 0.1, FAILED, reason="no more memory; buy some"),
    removed,  # of an axis that was cut
  ]
  trials = {trial.name: trial for trial in trials}
  table = sweep_tables.results_table(sweep, trials, plan)
  rows = table.set_index("point").to_dict("index")
  assert [(row["state"], row["LR"]) for row in rows.values()] == [
    ("done", 0.1),
    ("running", 0.2),
    ("pending", 0.05),
    ("failed", 0.1),
    ("pending", 0.1),
    ("pending", 0.1),
  ]
  points = {point.name: point for point in sweep.points}
  for name, row in rows.items():
    point = points[row["grid_point"]]
    assert name == f"{point.name},LR={row['LR']}"
    cost = figures(point)
    assert {k: row[k] for k in cost} == pytest.approx(cost, rel=0, abs=0)
    assert row["cost"] == 2.0 * cost["tpu_v4_core_hours"]
    assert {k: row[k] for k in point.bindings} == point.bindings
  done, running, _, failed, *_ = rows.values()
  assert done["loss"] == 2.5 and done["seconds"] == 9.5 and done["right"]
  assert "sha" not in table and "none" not in table
  assert failed["reason"] == "no more memory; buy some"
  assert math.isnan(failed["loss"]) and math.isnan(running["loss"])
  assert third.name in set(table["grid_point"])


def test_results_need_no_plan():
  table = sweep_tables.results_table(make_sweep(), {}, None)
  assert table["state"].tolist() == ["pending"] * 4
  assert table["EPOCHS"].tolist() == [0.5, 0.5, 8, 8]


def test_printed_results_are_aligned_and_counted():
  sweep = make_sweep()
  outcomes = [
    (DONE, {"result": {"loss": 1.23456}}),
    (FAILED, {"reason": "x" * 61}),
    (FAILED, {"reason": "y" * 60}),
  ]
  trials = {
    point.name: Trial(point.name, point.name, point.bindings, state, **outcome)
    for point, (state, outcome) in zip(sweep.points, outcomes)
  }
  table = sweep_tables.results_table(sweep, trials, None)
  text, counts = sweep_tables.describe_results(table, "loss").split("\n\n")
  title, *rows = text.splitlines()
  assert title.split() == ["point", "state", "loss", "reason"]
  assert [row.split() for row in rows] == [
    ["1", POINTS[0].name, "done", "1.2346"],
    ["2", POINTS[1].name, "failed", "x" * 57 + "..."],
    ["3", POINTS[2].name, "failed", "y" * 60],
    ["4", POINTS[3].name, "pending"],
  ]
  assert len({len(line) for line in [title, *rows]}) == 1
  assert sorted(counts.split(", ")) == ["1 done", "1 pending", "2 failed"]


def test_prints_no_loss_without_a_record():
  sweep, point = make_sweep(), POINTS[0]
  result = {"another": 1.0}
  trial = Trial(point.name, point.name, point.bindings, DONE, result)
  table = sweep_tables.results_table(sweep, {point.name: trial}, None)
  assert "0.0000" not in sweep_tables.describe_results(table, "loss")
