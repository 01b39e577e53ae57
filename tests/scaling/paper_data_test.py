"""The digitized points of the scaling paper's figures."""

import pytest

from nfnets_tf.scaling import paper_data

SIX = ["F0", "F1", "F3", "F3+", "F7", "F7+"]
BUDGETS = [0.25, 0.5, 1, 2, 4, 8]
TABLES = {
  paper_data.heldout_losses: (
    36,
    "model epochs tpu_v4_core_hours heldout_loss parameters macs".split(),
  ),
  paper_data.imagenet_errors: (
    29,
    ["model", "epochs", "tpu_v4_core_hours", "imagenet_top1_error_percent"],
  ),
  paper_data.optimal_learning_rates: (
    18,
    ["model", "epochs", "learning_rate"],
  ),
  paper_data.models: (6, ["model", "parameters", "macs"]),
}


@pytest.mark.parametrize("read", TABLES, ids=lambda read: read.__name__)
def test_table_has_its_rows_columns_and_numbers(read):
  table = read()
  assert (len(table), list(table)) == TABLES[read]
  numbers = table.drop(columns="model")
  assert all(kind in "if" for kind in numbers.dtypes.map(lambda t: t.kind))
  assert not (numbers <= 0).any(axis=None)


def test_figure_2_has_every_model_at_every_budget():
  table = paper_data.heldout_losses()
  pairs = list(zip(table["model"], table["epochs"]))
  assert pairs == [(model, epochs) for model in SIX for epochs in BUDGETS]


def test_longer_training_is_better_at_proportional_cost():
  for _, rows in paper_data.heldout_losses().groupby("model"):
    assert rows["heldout_loss"].is_monotonic_decreasing
    per_epoch = rows["tpu_v4_core_hours"] / rows["epochs"]
    assert per_epoch.max() / per_epoch.min() < 1.09


def test_figure_1_ends_with_the_vits():
  table = paper_data.imagenet_errors()
  assert table["epochs"].isna().tolist() == [False] * 26 + [True] * 3
  assert all("ViT" in model for model in table["model"][-3:])
  # The abstract: 90.3 %, and 90.4 % with repeated augmentation.
  error = table.set_index(["model", "epochs"])["imagenet_top1_error_percent"]
  assert error["F7+", 8] == pytest.approx(9.7, abs=0.06)
  repeated = table[table["model"].str.contains("repeated")]
  (best,) = repeated["imagenet_top1_error_percent"]
  assert best == pytest.approx(9.6, abs=0.06)


def test_figure_3_is_a_falling_grid_of_factor_two():
  table = paper_data.optimal_learning_rates()
  assert set(table["learning_rate"]) == {1.6, 0.8, 0.4}
  for _, rows in table.groupby("model"):
    assert rows["epochs"].tolist() == BUDGETS
    assert rows["learning_rate"].is_monotonic_decreasing
    assert rows["learning_rate"].iloc[0] == 1.6


def test_jft_4b_has_roughly_four_billion_images():
  assert paper_data.JFT_4B_IMAGES == 4e9


@pytest.mark.parametrize("read", TABLES, ids=lambda read: read.__name__)
def test_returns_an_independent_copy(read):
  before = read().copy()
  changed = read()
  changed.iloc[:, 1:] = 0
  changed["more"] = 1
  assert read().equals(before)
