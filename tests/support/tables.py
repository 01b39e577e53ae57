"""Tables of runs for the scaling laws: the paper's, and some of known laws."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from nfnets_tf.scaling import allocation, paper_data
from nfnets_tf.scaling.sparsity_law import SparsityLaw
from nfnets_tf.scaling.study import Fits, RunColumns, fit_study

COLUMNS = RunColumns("flops", "loss", "net", "macs", "epochs", "rate")

# Published in arXiv 2309.08520 for ViT on JFT-4B (D in examples) and T5 on C4
# (D in tokens).
VIT = SparsityLaw(2.94e2, 0.821, 4.68e2, 0.392, 2.37e8, 0.890, 4.517)
T5 = SparsityLaw(1.68e1, 0.722, 4.50e1, 0.245, 6.90e8, 0.203, 0.651)


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


def sparse_table(
  law: SparsityLaw = VIT,
  *,
  noise: float = 0.0,
  seed: int = 0,
  sizes=range(7),
  sparsities=(0.0, 0.5, 0.75, 0.875),
  budgets=range(4),
) -> pd.DataFrame:
  """Returns runs of a law of sparsity, with noise in the log of the loss.

  Args:
    law: of the losses.
    noise: standard deviation.
    seed: of the noise.
    sizes: powers of 2 of the nonzero parameters.
    sparsities: of each size.
    budgets: powers of 2 of the examples.
  """
  grid = itertools.product(sparsities, sizes, budgets)
  rows = [(s, 663_552.0 * 2**i, 225e6 * 2**j) for s, i, j in grid]
  names = ["sparsity", "nonzero_params", "examples"]
  table = pd.DataFrame(rows, columns=names)
  factors = np.random.default_rng(seed).normal(0.0, noise, len(rows))
  losses = law.predict(*table.to_numpy().T) * np.exp(factors)
  return table.assign(heldout_loss=losses)
