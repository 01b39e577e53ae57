"""A study of sparsity: tables, outliers, structures, the point held back."""

import dataclasses
import json
import logging

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import sparsity_plots
from nfnets_tf.scaling.run_tables import SparsityColumns, read_sparse_runs
from nfnets_tf.scaling.sparsity_fit import FitOptions
from nfnets_tf.scaling.sparsity_law import TrainingCost
from nfnets_tf.scaling.sparsity_study import fit_sparsity_study
from tests.support.tables import VIT, sparse_table

COLUMNS = SparsityColumns(
  "sparsity", "nonzero_params", "examples", "heldout_loss"
)
STRUCTURED = dataclasses.replace(COLUMNS, structure="pattern")
COST = TrainingCost(1176, 0.625)


def fit(table, columns=COLUMNS, *, resamples=0, hold_back=0):
  options = FitOptions(0.001, True, starts=10, resamples=resamples, seed=0)
  return fit_sparsity_study(
    table, columns, options=options, cost=COST, hold_back=hold_back
  )


@pytest.mark.parametrize(
  "column, value, words",
  [
    ("sparsity", 1.0, "at least 0 and below 1"),
    ("sparsity", 75, r"sparsity = 75.* \(50 % is 0.5\)"),
    ("sparsity", -0.5, "at least 0 and below 1"),
    ("nonzero_params", 0, "nonzero_params = 0.*above 0"),
    ("examples", -3, "examples = -3.*above 0"),
    ("heldout_loss", 0.0, "heldout_loss = 0.*above 0"),
    ("heldout_loss", np.inf, "heldout_loss = inf.*above 0"),
    ("heldout_loss", "2.5?", r"heldout_loss = 2.5\?.*above 0"),
  ],
)
def test_refuses_an_impossible_value_and_names_its_row(column, value, words):
  table = sparse_table(sizes=range(3)).astype(object)
  table.loc[16, column] = value
  with pytest.raises(UserError, match=f"^row 17 .*{words}") as info:
    fit(table)
  assert "\n" not in str(info.value) and str(info.value).count(". ") == 0


@pytest.mark.parametrize(
  "design, words",
  [
    ({"sparsities": [0.5]}, "112|28 usable rows.*1 sparsities"),
    ({"sparsities": [0.0, 0.5]}, "2 sparsities"),
    ({"sparsities": [0.0]}, "1 sparsities"),
    ({"sizes": [1, 2]}, "2 numbers of nonzero parameters"),
    ({"budgets": [1, 2]}, "2 amounts of data"),
    ({"sparsities": []}, "0 usable rows"),
  ],
)
def test_refuses_a_table_that_does_not_determine_the_law(design, words):
  with pytest.raises(UserError, match=f"does not determine.*({words})"):
    fit(sparse_table(**design))


def test_refuses_one_network_pruned_to_several_sparsities():
  # Sparsity and nonzero parameters say the same.
  table = sparse_table(noise=0.003)
  table["nonzero_params"] = 1e8 * (1 - table["sparsity"])
  with pytest.raises(UserError, match="do not vary independently.*several"):
    fit(table)


def test_sparsities_that_scatter_are_one_level():
  table = sparse_table(noise=0.003)
  noise = np.random.default_rng(0).uniform(-3e-4, 3e-4, len(table))
  table["sparsity"] = (table["sparsity"] + noise).clip(0)
  fits = fit(table)
  assert list(fits.of_structure("dense")["level"].unique()) == [0]
  levels = list(fits.dense_equivalents()["unstructured"])
  assert levels == pytest.approx([0.5, 0.75, 0.875], abs=3e-4)
  (axes,) = sparsity_plots.plot_fit(fits, COLUMNS).axes
  assert len(legend(axes)) == 4
  with pytest.raises(UserError, match="with 2 sparsities"):
    fit(table[table["sparsity"] < 0.6])


def test_refuses_seven_rows_and_takes_more():
  table = sparse_table(sizes=range(3), budgets=range(3)).iloc[::5]
  assert len(table) == 8 and fit(table).law.points == 8
  with pytest.raises(UserError, match="7 usable rows.*at least 8"):
    fit(table.iloc[:-1])


def test_names_a_missing_column():
  table = sparse_table().drop(columns="examples")
  with pytest.raises(UserError, match="no column 'examples'; bind Spars.*loss"):
    fit(table)


def test_skips_and_counts_rows_that_are_no_results(caplog):
  table = sparse_table(sizes=range(3)).assign(state="done")
  table = pd.concat([table, table.iloc[:2]], ignore_index=True)
  table.loc[3, "state"] = "failed"
  table.loc[3, "heldout_loss"] = -1.0
  table.loc[7, "heldout_loss"] = np.nan
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    runs, skipped = read_sparse_runs(table, COLUMNS)
  assert len(runs) == 46 and skipped == {
    "not done": 1,
    "with an empty cell": 1,
    "copies of another row": 2,
  }
  assert "row 8" in caplog.text


def test_best_learning_rate_counts():
  table = sparse_table(sizes=range(3))
  worse = table.assign(heldout_loss=table["heldout_loss"] * 1.1, LR=0.1)
  both = pd.concat([worse, table.assign(LR=0.2)], ignore_index=True)
  runs, skipped = read_sparse_runs(
    both, dataclasses.replace(COLUMNS, rate="lr")
  )
  assert sorted(runs["loss"]) == sorted(table["heldout_loss"])
  assert skipped == {"of worse learning rates": 48}


def test_an_odd_point_is_named_and_left_out(caplog):
  table = sparse_table(noise=0.005)
  clean = fit(table)
  assert clean.outliers.empty and clean.warnings() == []
  true = table.loc[30, "heldout_loss"]
  table.loc[30, "heldout_loss"] = 0.02
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    fits = fit(table)
  (odd,) = fits.outliers.itertuples()
  assert odd.name == "row 31" and odd.predicted == pytest.approx(true, rel=0.02)
  assert "row 31 is an outlier" in caplog.text
  assert len(fits.points) == 111
  assert fits.law.coefficients == pytest.approx(
    clean.law.coefficients, rel=0.05
  )
  assert "row 31" in dict(fits.describe())["outliers"]


@pytest.mark.parametrize("column", ["nonzero_params", "examples"])
def test_a_slipped_unit_is_named(column):
  table = sparse_table(noise=0.005)
  table.loc[64, column] /= 1e3
  assert fit(table).outliers["name"].tolist() == ["row 65"]


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_clean_tables_have_no_odd_points(noise):
  for seed in range(8):
    table = sparse_table(noise=noise, seed=seed, sizes=range(0, 7, 2))
    assert fit(table).outliers.empty


def test_a_law_that_misses_its_points_is_doubted():
  warnings = fit(sparse_table(noise=0.4)).warnings()
  assert any("misses its own" in sentence for sentence in warnings)


def test_what_is_at_the_end_of_its_range_is_doubted():
  table = sparse_table()
  table["heldout_loss"] -= 5e-10 * table["examples"]
  (sentence,) = fit(table).warnings()
  assert "does not determine c of the law" in sentence


def test_a_loss_that_data_do_not_change_is_doubted(caplog):
  table = sparse_table(law=dataclasses.replace(VIT, a_D=1e-30), noise=0.003)
  fits = fit(table, resamples=3, hold_back=1)
  assert "does not determine a_D" in caplog.text
  # Data are free by this law, so that all computes favor sparsity.
  optima = fits.optima()
  assert optima["sparsity"].min() > 0.999 and (optima["sparsity"] < 1).all()
  assert np.isfinite(optima.to_numpy()).all()


def with_patterns(noise=0.002):
  """Returns unstructured runs and some of 2:4 and 1:4, and the law of these."""
  known = dataclasses.replace(VIT, a_S=200.0, b_S=0.6, c_S=562.0)
  own = sparse_table(
    law=known, sparsities=[0.5, 0.75], sizes=range(4), noise=noise, seed=9
  )
  patterns = own["sparsity"].map({0.5: "2:4", 0.75: " 1 : 4"})
  table = sparse_table(noise=noise).assign(pattern="unstructured")
  table.loc[table["sparsity"] == 0, "pattern"] = None
  both = pd.concat([own.assign(pattern=patterns), table], ignore_index=True)
  return both, known


def test_patterns_have_a_law_of_their_own():
  table, known = with_patterns()
  fits = fit(table, STRUCTURED, resamples=5)
  assert fits.main == "unstructured" and list(fits.laws) == [fits.main, "n:4"]
  assert fits.law.points == 112 and fits.laws["n:4"].points == 32 + 28
  equal = fits.dense_equivalents()
  assert list(equal["n:4"]) == [0.5, 0.75]
  for name, law in (("n:4", known), ("unstructured", VIT)):
    for sparsity in (0.5, 0.75):
      value = equal[name][sparsity]["value"]
      assert value == pytest.approx(law.dense_equivalent(sparsity), rel=0.02)
  # Without the column all runs count as one structure.
  assert list(fit(table).laws) == ["unstructured"]


def test_an_exponent_at_the_end_of_its_range_is_doubted():
  table = sparse_table(law=dataclasses.replace(VIT, b_D=8.0), noise=0.001)
  (sentence,) = fit(table).warnings()
  assert "does not determine b_D" in sentence


def test_an_odd_point_of_another_structure_is_named_and_left_out():
  table, known = with_patterns()
  table.loc[[2, 20], "heldout_loss"] = [0.02, 11.0]
  fits = fit(table, STRUCTURED)
  assert sorted(fits.outliers["name"]) == ["row 21", "row 3"]
  assert fits.laws["n:4"].points == 30 + 28 and fits.law.points == 112
  for sparsity, values in fits.dense_equivalents()["n:4"].items():
    expected = known.dense_equivalent(sparsity)
    assert values["value"] == pytest.approx(expected, rel=0.02)


def test_a_structure_of_few_rows_is_doubted():
  table, _ = with_patterns()
  table = table.iloc[[0, 5, *range(32, len(table))]]
  (sentence,) = fit(table, STRUCTURED).warnings()
  assert "(n:4) has only 2 of its own rows" in sentence


def test_names_of_structures_count_whatever_their_case():
  table, _ = with_patterns()
  table.loc[table.index[-20:], "pattern"] = " Unstructured"
  assert list(fit(table, STRUCTURED).laws) == ["unstructured", "n:4"]


def test_refuses_dense_networks_with_zeros():
  table, _ = with_patterns()
  table.loc[len(table) - 1, "pattern"] = "Dense"
  with pytest.raises(UserError, match="row 144 .*'Dense'.*sparsity of 0.875"):
    fit(table, STRUCTURED)


def test_summary_without_resamples_speaks_of_no_intervals():
  table = sparse_table(noise=0.003)
  assert "intervals" not in dict(fit(table).describe())
  assert "intervals" in dict(fit(table, resamples=2).describe())


def test_most_expensive_point_is_predicted_from_the_others():
  table = sparse_table(noise=0.003)
  fits = fit(table, resamples=20, hold_back=2)
  held = fits.held_back
  compute = COST.compute(*table.to_numpy().T[:3])
  last = table.iloc[np.argsort(compute)[-2:]]
  assert held.points["loss"].tolist() == last["heldout_loss"].tolist()
  assert held.law.points == 110 and fits.law.points == 112
  rest = table.drop(index=last.index)
  assert held.law.coefficients == pytest.approx(
    fit(rest).law.coefficients, rel=1e-3
  )
  predicted = held.law.predict(*last.to_numpy().T[:3])
  assert held.points["predicted"].tolist() == pytest.approx([*predicted])
  assert (held.points["low"] < held.points["high"]).all()
  assert np.abs(held.errors()).max() < 0.01
  assert "for" in held.describe()
  few = sparse_table(sizes=range(3), budgets=range(3)).iloc[::5]
  assert fit(few, hold_back=1).held_back.law is None


def test_results_are_json_and_optima_span_the_table():
  fits = fit(sparse_table(noise=0.003), resamples=5, hold_back=1)
  content = json.loads(json.dumps(fits.to_json()))
  law = content["laws"]["unstructured"]
  low, high = law["b_N"]["interval"]
  assert low < law["b_N"]["value"] * 1.1 and high > law["b_N"]["value"] * 0.9
  assert law["level"] == 0.9 and content["held_back"]["points"]
  optima = fits.optima()
  assert len(optima) == 169 and optima["sparsity"].between(0, 1).all()
  ends = fits.points["nonzero"].agg(["min", "max"])
  assert optima["nonzero"].agg(["min", "max"]).tolist() == pytest.approx(
    ends.tolist()
  )
  compute = COST.compute(*optima[["sparsity", "nonzero", "data"]].to_numpy().T)
  np.testing.assert_allclose(compute, optima["compute"])


def legend(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def test_figures_show_all_points_and_the_law():
  table, _ = with_patterns()
  table.loc[0, "heldout_loss"] = 30.0
  table.loc[40, "heldout_loss"] = 30.0
  fits = fit(table, STRUCTURED, resamples=3, hold_back=1)
  figure = sparsity_plots.plot_sparse_losses(fits, STRUCTURED)
  names = ["dense", "0.5", "0.75", "0.875", "0.5 n:4", "0.75 n:4"]
  assert len(figure.axes) == 4 and legend(figure.axes[-1]) == names
  assert [axes.get_title() for axes in figure.axes] == [
    f"examples: {text}" for text in ("225M", "450M", "900M", "1.8G")
  ]
  dots = sum(
    len(line.get_xdata())
    for axes in figure.axes
    for line in axes.lines
    if line.get_label() in names
  )
  assert dots == len(fits.points)
  (axes,) = sparsity_plots.plot_optimal_sparsity(fits, STRUCTURED).axes
  runs, dense, half, *_ = axes.lines
  assert len(runs.get_xdata()) == len(fits.points)
  assert "0.5" in half.get_label() and "dense" in dense.get_label()
  x, y = half.get_xydata()[7]
  assert fits.law.optimal_sparsity(y, x, COST) == pytest.approx(0.5)
  (axes,) = sparsity_plots.plot_fit(fits, STRUCTURED).axes
  assert axes.get_ylabel() == "held-out loss (nats), measured"
  assert {"held back", "outlier", *names} <= set(legend(axes))
  for line in axes.lines:
    for values, (low, high) in (
      (line.get_xdata(), axes.get_xlim()),
      (line.get_ydata(), axes.get_ylim()),
    ):
      assert ((low < values) & (values < high)).all()
