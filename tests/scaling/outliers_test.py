"""Points that contradict all others: named, left out, and no false alarms."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.scaling import outliers, paper_data, power_laws
from nfnets_tf.scaling.study import RunColumns, best_runs, fit_study, read_runs

COLUMNS = RunColumns("compute", "loss", "model", "size", "epochs", None)


@pytest.fixture(autouse=True)
def propagate(monkeypatch):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)


def ladder(count=20, noise=0.005, seed=0, offset=0.0):
  """Returns points of 3 C^-0.05 + offset: a model for every four of them."""
  i = np.arange(count)
  compute = np.geomspace(400, 1e5, count)
  loss = 3 * compute**-0.05 + offset
  loss *= np.exp(np.random.default_rng(seed).normal(0, noise, count))
  return pd.DataFrame(
    {
      "compute": compute,
      "loss": loss,
      "model": [f"m{k}" for k in i // 4],
      "size": 2.0 ** (i // 4),
      "epochs": 2.0 ** (i % 4),
    }
  )


def grid(rng, noise):
  """Returns sizes times epochs of L = c + A N^-u + B E^-v, C = N E."""
  n, e = (2.0 ** np.arange(rng.integers(2, 7)) for _ in range(2))
  size, epochs = (v.ravel() for v in np.meshgrid(n, e))
  u, v = rng.uniform(0.2, 0.5, 2)
  loss = rng.uniform(0, 2) + rng.uniform(0.5, 2) * size**-u + epochs**-v
  loss *= np.exp(rng.normal(0, noise, len(loss)))
  table = {"compute": size * epochs, "loss": loss, "size": size}
  return pd.DataFrame({**table, "epochs": epochs})


def fit(table, **options):
  given = {"extrapolate_from": None, "resamples": 2, "seed": 0}
  return fit_study(table, COLUMNS, **given, **options)


ROWS = {"cheapest": [0], "middle": [10], "dearest": [19], "two": [0, 1]}
ROWS["three"] = [0, 10, 19]


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(
  "column, factor",
  [("loss", 0.01), ("loss", 5), ("compute", 1e9), ("compute", 1e-9)],
)
def test_laws_are_those_of_the_table_without_outliers(rows, column, factor):
  table = ladder()
  clean = table.drop(index=rows)
  table.loc[rows, column] *= factor
  kept, found = outliers.split_outliers(read_runs(table, COLUMNS)[0])
  assert sorted(found["name"]) == sorted(
    f"row {i + 1} (m{i // 4}, epochs {2.0 ** (i % 4):g})" for i in rows
  )
  assert set(found["quantity"]) == {column}
  law, naive = (
    power_laws.fit_power_law(t["compute"], t["loss"]) for t in (kept, clean)
  )
  assert law == naive


def test_says_which_point_is_off_by_how_much(caplog):
  table = ladder()
  table.loc[0, "loss"] = 0.02
  fits = fit(table)
  (sentence,) = fits.warnings()
  assert sentence in caplog.text
  for words in ("row 1 (m0, epochs 1)", "0.02", "400", "111 times too low"):
    assert words in sentence
  content = json.loads(json.dumps(fits.to_json(), allow_nan=False))
  (point,) = content["outliers"]
  assert point["loss"] == 0.02 and point["expected"] == pytest.approx(
    2.22, 0.01
  )
  assert content["power_law"]["b"]["value"] == pytest.approx(0.05, abs=1e-3)
  assert content["power_law_with_outliers"] is None  # nothing beats it
  assert "law with outliers" in dict(fits.describe())


def test_outliers_can_be_kept():
  table = ladder()
  table.loc[0, "loss"] = 11
  kept, dropped = fit(table, exclude_outliers=False), fit(table)
  assert len(kept.points) == 20 and len(dropped.points) == 19
  assert (kept.power.a, kept.power.b) == pytest.approx(
    (dropped.other_laws[0].a, dropped.other_laws[0].b)
  )
  assert kept.other_laws[0].b == pytest.approx(dropped.power.b)
  assert kept.power.b > 1.2 * dropped.power.b
  assert "fitted nevertheless" in kept.warnings()[0]
  assert "power_law_without_outliers" in kept.to_json()


def test_next_run_takes_the_place_of_an_impossible_one():
  table = pd.concat([ladder(), ladder().iloc[:1].assign(loss=0.02)])
  fits = fit(table.assign(run=[f"r{i}" for i in range(21)]))
  assert list(fits.outliers["name"]) == ["r20"]
  assert len(fits.points) == 20 and fits.points["loss"].min() > 1


def test_worse_runs_go_with_a_point_that_is_too_bad():
  table = pd.concat([ladder(), ladder().iloc[10:11].assign(loss=13)])
  table = table.reset_index(drop=True)
  table.loc[10, "loss"] = 11
  fits = fit(table)
  assert len(fits.outliers) == 1 and len(fits.points) == 19


@pytest.mark.parametrize("count", [4, 5, 6])
@pytest.mark.parametrize("row", [0, -1])
def test_few_points(count, row):
  table = ladder(count)
  table.iloc[row, 1] = 0.02
  assert list(outliers.find_outliers(table).index) == [table.index[row]]


def test_says_so_where_nobody_knows_which_point_is_wrong():
  table = ladder(3)
  table.loc[2, "loss"] = 0.02
  fits = fit(table)
  assert fits.outliers.empty and "cannot be told" in fits.warnings()[0]


@pytest.mark.parametrize(
  "change",
  [
    {"compute": 1e18},
    {"loss": 2.0},
    {"loss": ladder()["loss"].to_numpy()[::-1]},
  ],
)
def test_says_why_there_is_no_law(change):
  fits = fit(ladder().assign(**change))
  assert fits.power is None and "no law" in fits.warnings()[0]


def test_plain_fits_warn(caplog):
  table = ladder()
  power_laws.fit_power_law(table["compute"], table["loss"])
  assert not caplog.records
  table.loc[0, "loss"] = 0.02
  power_laws.fit_power_law(table["compute"], table["loss"])
  assert "0.02 at 400" in caplog.text


def test_no_alarm_at_the_papers_points_and_at_the_study():
  columns = RunColumns(
    "tpu_v4_core_hours", "heldout_loss", "model", "parameters", "epochs", None
  )
  for size in ("parameters", "macs"):
    names = {**vars(columns), "size": size}
    runs, _ = read_runs(paper_data.heldout_losses(), RunColumns(**names))
    assert outliers.find_outliers(best_runs(runs)).empty
  columns = RunColumns(
    "flops", "heldout_loss", "VARIANT", "macs", "EPOCHS", "PEAK_LR"
  )
  runs, _ = read_runs(pd.read_csv("docs/data/cifar10_sweep.csv"), columns)
  assert outliers.split_outliers(runs)[1].empty


def count_alarms(tables: int) -> int:
  rng, alarms = np.random.default_rng(0), 0
  for number in range(tables):
    noise = (0.005, 0.01, 0.02)[number % 3]
    if number % 2:
      table = grid(rng, noise)
    else:
      offset = rng.choice([0.0, 1.0])
      table = ladder(rng.integers(5, 41), noise, number, offset)
    alarms += len(outliers.find_outliers(table)) > 0
  return alarms


def test_clean_tables_raise_no_alarm():
  assert count_alarms(60) <= 1


@pytest.mark.soak
def test_a_thousand_clean_tables_raise_at_most_ten_alarms():
  alarms = count_alarms(1000)
  logging.getLogger("nfnets_tf").info("%d alarms", alarms)
  assert alarms <= 10


@pytest.mark.parametrize("model", ["m0", "m2", "m4"])
@pytest.mark.parametrize("factor", [1e-3, 50, 1e6])
def test_the_unit_of_a_whole_model(model, factor):
  table = ladder()
  true, wrong = table["compute"].copy(), table["model"] == model
  table.loc[wrong, "compute"] *= factor
  # One more point of another model does not hide it.
  other = 4 if model == "m0" else 0
  table.loc[other, "compute"] *= 1e4
  found = outliers.find_outliers(table)
  assert {*found.index} == {*np.flatnonzero(wrong), other}
  assert {*found["quantity"]} == {"compute"}
  np.testing.assert_allclose(found["expected"], true[found.index], rtol=0.5)


def test_computes_that_are_logarithms():
  table = ladder().assign(compute=lambda t: np.log10(t["compute"]))
  assert any("not their logarithms" in x for x in fit(table).warnings())
  assert not fit(ladder()).warnings()


def test_a_wrong_size_is_shown_beside_the_compute(caplog):
  table = ladder()
  table.loc[7, "size"] = 2e9
  fit(table)
  assert "at a size of 2e+09 and 8 epochs, but the other" in caplog.text
