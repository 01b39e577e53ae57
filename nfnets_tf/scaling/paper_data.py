"""The points of the scaling paper's figures, as tables.

"ConvNets Match Vision Transformers at Scale" (arXiv 2310.16764) prints no
tables: the points are digitized, to the precision that paper/README.md states.
"""

from __future__ import annotations

import functools
import pathlib

import pandas as pd

_DIRECTORY = pathlib.Path(__file__).parent / "paper"

# Images of JFT-4B, "roughly 4 billion" (section 1).
JFT_4B_IMAGES = 4_000_000_000


def heldout_losses() -> pd.DataFrame:
  """Returns figure 2: 36 rows, six models at six epoch budgets.

  Columns: model, epochs of JFT-4B, tpu_v4_core_hours, heldout_loss in nats, and
  those of `models`.
  """
  return _read("fig2_heldout_loss.csv").merge(models(), on="model")


def imagenet_errors() -> pd.DataFrame:
  """Returns figure 1: 29 rows, of which the last three are ViTs.

  Columns: model, epochs (NaN for the ViTs), tpu_v4_core_hours of pre-training,
  imagenet_top1_error_percent after fine-tuning.
  """
  return _read("fig1_imagenet_top1_error.csv")


def optimal_learning_rates() -> pd.DataFrame:
  """Returns figure 3: 18 rows, three models at six epoch budgets.

  Columns: model, epochs, learning_rate (peak, at a batch size of 4096).
  """
  return _read("fig3_optimal_learning_rate.csv")


def models() -> pd.DataFrame:
  """Returns the sizes of the six models: counted, not the paper's.

  Columns: model, parameters with the head of 30,000 classes, macs of one
  image's forward pass at 224 px.
  """
  return _read("models.csv")


def _read(name: str) -> pd.DataFrame:
  return _read_cached(name).copy()


@functools.cache
def _read_cached(name: str) -> pd.DataFrame:
  return pd.read_csv(_DIRECTORY / name)
