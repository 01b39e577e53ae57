import csv
import math
import threading

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import RunError
from nfnets_tf.scaling import points, sweep_plan
from nfnets_tf.scaling.board import DONE, FAILED, Board

GRID = [{"EPOCHS": e, "VARIANT": v} for e in (0.5, 8) for v in ("F0", "F7+")]
CELLS = points.cells_of(GRID)
SIZES = {"F0": 68_436_584, "F7+": 948_364_960}


def figures(cell):
  size, epochs = SIZES[cell.bindings["VARIANT"]], cell.bindings["EPOCHS"]
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
    "memory_bytes_an_image": size / 10,
  }


@pytest.fixture
def board(tmp_path):
  return Board(str(tmp_path), lease_seconds=60)


def test_a_plan_has_a_row_for_each_point_in_their_order():
  plan = sweep_plan.plan_sweep(CELLS, figures, None)
  assert plan["point"].tolist() == [cell.name for cell in CELLS]
  for row, cell in zip(plan.to_dict("records"), CELLS):
    assert row == {"point": cell.name, **cell.bindings, **figures(cell)}


@pytest.mark.parametrize("price", [0, 1.5, 3])
def test_a_cost_is_the_core_hours_at_their_price(price):
  plan = sweep_plan.plan_sweep(CELLS, figures, price)
  naive = [price * figures(cell)["tpu_v4_core_hours"] for cell in CELLS]
  assert plan["cost"].tolist() == naive
  assert "cost" not in sweep_plan.plan_sweep(CELLS, figures, None)


def test_a_plan_can_be_read():
  """Numbers with their units, in columns, and the sum."""
  plan = sweep_plan.plan_sweep(CELLS, figures, 2.0)
  text = sweep_plan.describe_plan(plan, trials=3)
  table, total = text.split("\n\n")
  title, *rows = table.splitlines()
  assert len({len(line) for line in [title, *rows]}) == 1  # to the right
  head = "parameters GMACs images steps FLOPs core-hours of peak GB MB/image"
  assert title.split() == ["point", *head.split(), "cost"]
  assert rows[0].split() == [
    "1",
    "EPOCHS=0.5,VARIANT=F0",
    "68,436,584",
    "10.27",
    "2,000,000,000",
    "488,281",
    "1.23e+20",
    "488.8",
    "33.3%",
    "1.095",
    "6.844",
    "977.67",
  ]
  assert rows[3].split()[6:8] == ["2.73e+22", "108,385"]
  hours = sum(SIZES.values()) * 8.5 / 7e4
  assert total == (
    "4 points, of 3 trials each at least: 9.33e+22 FLOPs,"
    f" {3 * hours:,.0f} TPU-v4 core-hours, {6 * hours:,.2f} by the price given"
  )


def test_a_plan_without_a_price_or_trials_says_nothing_of_them():
  plan = sweep_plan.plan_sweep(CELLS, figures, None)
  text = sweep_plan.describe_plan(plan, trials=1)
  assert "cost" not in text and "price" not in text and "trials" not in text
  assert "4 points: 3.11e+22 FLOPs" in text


def test_the_same_comes_back_from_csv(tmp_path):
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
  assert sweep_plan.read_table(path) is None
  sweep_plan.write_table(table, path, str(root))
  pd.testing.assert_frame_equal(
    sweep_plan.read_table(path), table, check_exact=True, check_dtype=False
  )
  with open(path) as file:  # any other program reads it as well
    rows = list(csv.DictReader(file))
  assert [float(row["loss"]) for row in rows] == table["loss"].tolist()
  assert [row["point"] for row in rows] == table["point"].tolist()


def test_a_table_is_read_whole_while_it_is_replaced(tmp_path):
  tables = [pd.DataFrame({"a": [n] * n}) for n in (1, 50, 2000)]
  path, ended = str(tmp_path / "plan.csv"), threading.Event()
  sweep_plan.write_table(tables[0], path, str(tmp_path))

  def write():
    while not ended.is_set():
      for table in tables:
        sweep_plan.write_table(table, path, str(tmp_path))

  thread = threading.Thread(target=write)
  thread.start()
  seen = [sweep_plan.read_table(path) for _ in range(1500)]
  ended.set()
  thread.join()
  assert all((table["a"] == len(table)).all() for table in seen)
  assert {len(table) for table in seen} == {1, 50, 2000}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / "file").touch()
  root = str(tmp_path / "file")
  with pytest.raises(RunError, match="cannot be written"):
    sweep_plan.write_table(pd.DataFrame({"a": [1]}), f"{root}/a.csv", root)


def finish(board, point, state=DONE, **content):
  board.write(
    point.name, state, cell=point.cell, bindings=point.bindings, **content
  )


def test_results_stand_beside_what_they_cost(board, tmp_path):
  plan = sweep_plan.plan_sweep(CELLS, figures, 2.0)
  sweep_plan.write_table(plan, board.plan, str(tmp_path))
  trials = [points.trial_of(CELLS[1], "LR", rate) for rate in (0.1, 0.2, 0.4)]
  result = {"loss": 2.5, "sha": "ab", "none": None, "right": True}
  finish(board, trials[0], result=result, seconds=9.5)
  finish(board, trials[1], FAILED, reason="no more memory; buy some")
  cut = points.cells_of([{"EPOCHS": 99, "VARIANT": "F0"}])[0]
  finish(board, cut, result={"loss": 0.0})
  board.claims.take(trials[2].name)
  waiting = [trials[2], CELLS[2]]
  table = sweep_plan.gather_results(board, CELLS, waiting)
  rows = table.set_index("point").to_dict("index")
  assert list(rows) == [p.name for p in (*trials, CELLS[2])]  # none that is cut
  assert table["state"].tolist() == ["done", "failed", "running", "pending"]
  for point in (*trials, CELLS[2]):
    cell = next(cell for cell in CELLS if cell.name == point.cell)
    row, cost = rows[point.name], figures(cell)
    assert row["cell"] == cell.name
    assert {k: row[k] for k in cost} == pytest.approx(cost, rel=0, abs=0)
    assert row["cost"] == 2.0 * cost["tpu_v4_core_hours"]
    assert {k: row[k] for k in point.bindings} == point.bindings
  done, failed, running, _ = rows.values()
  assert done["loss"] == 2.5 and done["seconds"] == 9.5 and done["right"]
  assert "sha" not in table and "none" not in table
  assert failed["reason"] == "no more memory; buy some"
  assert math.isnan(failed["loss"]) and math.isnan(running["loss"])


def test_results_need_no_plan(board):
  finish(board, CELLS[0], result={"loss": 1.0})
  table = sweep_plan.gather_results(board, CELLS, CELLS[1:2])
  assert table["state"].tolist() == ["done", "pending"]
  assert table["EPOCHS"].tolist() == [0.5, 0.5]


def test_states_can_be_read(board):
  finish(board, CELLS[0], result={"loss": 1.23456})
  finish(board, CELLS[1], FAILED, reason="x" * 61)
  finish(board, CELLS[2], FAILED, reason="y" * 60)
  table = sweep_plan.gather_results(board, CELLS, CELLS[3:])
  text, counts = sweep_plan.describe_states(table, "loss").split("\n\n")
  title, *rows = text.splitlines()
  assert title.split() == ["point", "state", "loss", "reason"]
  assert [row.split() for row in rows] == [
    ["1", CELLS[0].name, "done", "1.2346"],
    ["2", CELLS[1].name, "failed", "x" * 57 + "..."],
    ["3", CELLS[2].name, "failed", "y" * 60],
    ["4", CELLS[3].name, "pending"],
  ]
  assert len({len(line) for line in [title, *rows]}) == 1
  assert sorted(counts.split(", ")) == ["1 done", "1 pending", "2 failed"]


def test_a_sweep_of_which_nothing_is_there_has_no_rows(board):
  table = sweep_plan.gather_results(board, [], [])
  assert len(table) == 0
  assert "point" in sweep_plan.describe_states(table, "loss")
  table = sweep_plan.gather_results(board, CELLS, CELLS)
  counts = sweep_plan.describe_states(table, "loss").splitlines()[-1]
  assert counts == "4 pending"
  assert "pending" not in sweep_plan.describe_states(table[:0], "loss")


def test_a_loss_that_was_not_written_is_not_nought(board):
  finish(board, CELLS[0], result={"another": 1.0})
  table = sweep_plan.gather_results(board, CELLS, [])
  assert "0.0000" not in sweep_plan.describe_states(table, "loss")
