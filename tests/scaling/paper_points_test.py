import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import paper_points

SIX = ["F0", "F1", "F3", "F3+", "F7", "F7+"]
BUDGETS = [0.25, 0.5, 1, 2, 4, 8]
TABLES = {
  paper_points.heldout_losses: (
    36,
    ["model", "epochs", "tpu_v4_core_hours", "heldout_loss"],
  ),
  paper_points.imagenet_errors: (
    29,
    ["model", "epochs", "tpu_v4_core_hours", "imagenet_top1_error_percent"],
  ),
  paper_points.optimal_learning_rates: (
    18,
    ["model", "epochs", "learning_rate"],
  ),
  paper_points.models: (6, ["model", "parameters", "macs"]),
}


@pytest.mark.parametrize("read", TABLES, ids=lambda read: read.__name__)
def test_a_table_has_its_rows_columns_and_numbers(read):
  table = read()
  assert (len(table), list(table)) == TABLES[read]
  numbers = table.drop(columns="model")
  assert all(kind in "if" for kind in numbers.dtypes.map(lambda t: t.kind))
  assert not (numbers <= 0).any(axis=None)


def test_figure_2_is_every_model_at_every_budget():
  table = paper_points.heldout_losses()
  pairs = list(zip(table["model"], table["epochs"]))
  assert pairs == [(model, epochs) for model in SIX for epochs in BUDGETS]


def test_longer_is_better_and_costs_in_proportion():
  for _, own in paper_points.heldout_losses().groupby("model"):
    assert own["heldout_loss"].is_monotonic_decreasing
    per_epoch = own["tpu_v4_core_hours"] / own["epochs"]
    assert per_epoch.max() / per_epoch.min() < 1.09


def test_figure_1_ends_with_what_has_no_epochs():
  table = paper_points.imagenet_errors()
  assert table["epochs"].isna().tolist() == [False] * 26 + [True] * 3
  assert all("ViT" in model for model in table["model"][-3:])
  # The abstract: 90.3 %, and 90.4 % with repeated augmentation.
  error = table.set_index(["model", "epochs"])["imagenet_top1_error_percent"]
  assert error["F7+", 8] == pytest.approx(9.7, abs=0.06)
  repeated = table[table["model"].str.contains("repeated")]
  (best,) = repeated["imagenet_top1_error_percent"]
  assert best == pytest.approx(9.6, abs=0.06)


def test_figure_3_is_a_grid_by_factors_of_two_that_falls():
  table = paper_points.optimal_learning_rates()
  assert set(table["learning_rate"]) == {1.6, 0.8, 0.4}
  for _, own in table.groupby("model"):
    assert own["epochs"].tolist() == BUDGETS
    assert own["learning_rate"].is_monotonic_decreasing
    assert own["learning_rate"].iloc[0] == 1.6


def test_jft_4b_has_roughly_four_billion_images():
  assert paper_points.JFT_4B_IMAGES == 4e9


@pytest.mark.parametrize("read", TABLES, ids=lambda read: read.__name__)
def test_what_a_caller_does_to_a_table_stays_with_the_caller(read):
  before = read().copy()
  spoilt = read()
  spoilt.iloc[:, 1:] = 0
  spoilt.drop(index=0, inplace=True)
  spoilt["more"] = 1
  assert read().equals(before)


def test_a_missing_file_is_said_in_one_sentence(monkeypatch, tmp_path):
  monkeypatch.setattr(paper_points, "_FOLDER", tmp_path)
  paper_points._cached.cache_clear()
  try:
    with pytest.raises(UserError) as caught:
      paper_points.models()
  finally:
    paper_points._cached.cache_clear()
  path = str(tmp_path / "models.csv")
  assert str(caught.value) == (
    f"the package lacks its own file {path!r}; install nfnets_tf again."
  )
