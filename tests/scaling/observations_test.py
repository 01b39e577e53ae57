"""Which rows of a table are points."""

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.observations import (
  Columns,
  best_of_cells,
  best_rates,
  read_points,
)

COLUMNS = Columns("flops", "loss", "net", "macs", "budget", "lr")


def table(**changes):
  content = {
    "flops": [4.0, 1.0, 2.0],
    "loss": [0.5, 0.9, 0.7],
    "net": ["a", "a", "b"],
    "macs": [10, 10, 20],
    "budget": [4, 1, 1],
    "lr": [0.1, 0.1, 0.2],
    "unused": ["x", "y", "z"],
  }
  return pd.DataFrame({**content, **changes})


def test_points_are_the_rows_cheapest_first():
  points, left_out = read_points(table(), COLUMNS)
  assert list(points["compute"]) == [1.0, 2.0, 4.0]
  assert list(points["model"]) == ["a", "b", "a"]
  assert not left_out


@pytest.mark.parametrize(
  "column, value",
  [
    ("loss", np.nan),
    ("loss", np.inf),
    ("loss", 0.0),
    ("loss", "none"),
    ("flops", -1.0),
    ("budget", np.nan),
  ],
)
def test_rows_that_failed_are_left_out_and_counted(column, value):
  values = [value, *table()[column][1:]]
  points, left_out = read_points(table(**{column: values}), COLUMNS)
  assert list(points["compute"]) == [1.0, 2.0]
  assert left_out == {"without positive numbers": 1}


def test_only_what_is_done_counts():
  states = ["failed", "done", "running"]
  points, left_out = read_points(table(state=states), COLUMNS)
  assert list(points["compute"]) == [1.0]
  assert left_out["not done"] == 2


def test_a_table_of_nothing_has_no_points():
  points, left_out = read_points(table().iloc[:0], COLUMNS)
  assert points.empty and not left_out


def test_a_column_that_does_not_exist_is_told():
  columns = Columns("hours", "loss", "net", "macs", "budget", None)
  with pytest.raises(UserError, match="no column 'hours', only flops, loss"):
    read_points(table(), columns)


def test_a_table_without_rates_is_read():
  columns = Columns("flops", "loss", "net", "macs", "budget", None)
  points, _ = read_points(table(), columns)
  assert len(points) == 3 and points["rate"].isna().all()
  assert best_rates(points).empty


def trials(losses):
  """Runs of one cell at rates 0.1, 0.2, ..., in a mixed order."""
  rows = [
    {"model": "a", "epochs": 1, "compute": 1.0, "size": 1, "rate": r, "loss": x}
    for r, x in losses.items()
  ]
  return pd.DataFrame(rows).sample(frac=1.0, random_state=0)


@pytest.mark.parametrize(
  "losses, best, edge",
  [
    ({0.1: 3, 0.2: 1, 0.4: 2}, 0.2, ""),
    ({0.1: 1, 0.2: 2, 0.4: 3}, 0.1, "lower"),
    ({0.1: 3, 0.2: 2, 0.4: 1}, 0.4, "upper"),
    ({0.1: 3}, 0.1, "only"),
  ],
)
def test_the_best_rate_and_whether_it_is_an_edge(losses, best, edge):
  (row,) = best_rates(trials(losses)).to_dict("records")
  assert (row["rate"], row["edge"]) == (best, edge)


def test_of_a_cell_the_lowest_loss_counts():
  points = pd.concat(
    [trials({0.1: 3, 0.2: 1}), trials({0.1: 5, 0.2: 6}).assign(epochs=2)]
  )
  best = best_of_cells(points)
  assert sorted(best["loss"]) == [1, 5] and len(best) == 2
