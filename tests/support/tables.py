"""Tables of runs for the scaling laws: the paper's, and one of a known law."""

from __future__ import annotations

import itertools

import pandas as pd

from nfnets_tf.scaling import allocation, paper_data
from nfnets_tf.scaling.study import Fits, RunColumns, fit_study

COLUMNS = RunColumns("flops", "loss", "net", "macs", "epochs", "rate")


def paper_table(best: bool = False):
  """Returns figure 2 of the scaling paper.

  Args:
    best: whether to return compute and loss of the Pareto frontier, not the
      table of all runs.
  """
  names = {"tpu_v4_core_hours": "compute", "heldout_loss": "loss"}
  table = paper_data.heldout_losses().rename(columns=names)
  if not best:
    return table
  table = allocation.pareto_frontier(table)
  return table["compute"], table["loss"]


def known_table(sizes=range(6), budgets=range(8)) -> pd.DataFrame:
  """Returns runs of L = N^-0.3 + E^-0.3 with C = N E.

  Size and epochs grow as C^0.5, and the loss falls as C^-0.15.
  """
  rows = []
  for i, j in itertools.product(sizes, budgets):
    size, epochs = 2.0**i, 2.0 ** (j - 1)
    for factor, rate in ((1.0, 0.2), (1.1, 0.1), (1.2, 0.4)):
      loss = factor * (size**-0.3 + epochs**-0.3)
      rows.append((size * epochs, loss, f"n{i}", size, epochs, rate))
  names = ["flops", "loss", "net", "macs", "epochs", "rate"]
  return pd.DataFrame(rows, columns=names)


def fit_quickly(table: pd.DataFrame, **options) -> Fits:
  """Returns a study's fits with few bootstrap samples."""
  given = {"extrapolate_from": None, "resamples": 5, "seed": 0, **options}
  return fit_study(table, COLUMNS, **given)
