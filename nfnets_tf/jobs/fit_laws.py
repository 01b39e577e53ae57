"""The job that fits the scaling laws to any table."""

from __future__ import annotations

import os

import pandas as pd
import tensorflow as tf

from nfnets_tf.errors import UserError, require_int
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.law_files import begin, two_columns, write_json
from nfnets_tf.scaling.observations import Columns
from nfnets_tf.scaling.study import fit_study
from nfnets_tf.scaling.study_figures import draw_study


class FitLawsJob:
  """Fits the scaling laws to a table and draws them.

  Below the work directory: laws.json, loss.png, rates.png, allocation.png.

  Args:
    table: a CSV file with a row for each run, such as a sweep's results.csv.
    compute: name of its column of what a run cost.
    loss: of the losses.
    model: of the networks' names.
    size: of the networks' sizes.
    epochs: of the epochs.
    rate: of the learning rates, or None.
    held_back_from: compute from which on points are predicted by those below,
      or None for the geometric mean of the ends.
    resamples: of each bootstrap.
    seed: of the resamples.
  """

  def __init__(
    self,
    *,
    table: str,
    compute: str,
    loss: str,
    model: str,
    size: str,
    epochs: str,
    rate: str | None,
    held_back_from: float | None,
    resamples: int,
    seed: int,
  ):
    require_int("FitLawsJob.resamples", resamples, 1)
    self.table = table
    self.columns = Columns(compute, loss, model, size, epochs, rate)
    self.held_back_from = held_back_from
    self.resamples, self.seed = resamples, seed

  def plan(self) -> str:
    """Returns what would be fitted."""
    return two_columns(
      [("table", self.table), ("resamples", f"{self.resamples:,}")]
    )

  def run(self, context: RunContext) -> str:
    """Writes the files; returns the main numbers.

    Raises:
      UserError: if the table cannot be read or lacks a column.
    """
    fits = fit_study(
      _read_table(self.table),
      self.columns,
      held_back_from=self.held_back_from,
      resamples=self.resamples,
      seed=self.seed,
    )
    begin(context)
    write_json(context.workdir, {"table": self.table, **fits.to_json()})
    paths = draw_study(fits, self.columns, context.workdir)
    lines = fits.describe() + [("picture", path) for path in paths]
    return two_columns(
      [*lines, ("laws", os.path.join(context.workdir, "laws.json"))]
    )


def _read_table(path: str) -> pd.DataFrame:
  if not tf.io.gfile.exists(path):
    raise UserError(
      f"the table {path!r} does not exist; bind it to a CSV file with a row for"
      " each run, such as a sweep's results.csv."
    )
  try:
    with tf.io.gfile.GFile(path) as file:
      return pd.read_csv(file)
  except (ValueError, UnicodeDecodeError) as error:
    raise UserError(
      f"{path!r} is no table ({str(error).splitlines()[0]}); expected a CSV"
      " file with a row for each run."
    ) from error
