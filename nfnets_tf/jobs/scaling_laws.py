"""The jobs that fit scaling laws: to any table, and to the paper's points."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pandas as pd
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes, report_write_errors, write_atomically
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.progress import activity
from nfnets_tf.ranges import (
  PATH,
  SEED,
  accepts,
  built,
  flag,
  integer,
  number,
  optional,
)
from nfnets_tf.scaling import (
  allocation,
  compute,
  paper_data,
  plots,
  run_tables,
  sparsity_plots,
  study,
)
from nfnets_tf.scaling.run_tables import SparsityColumns
from nfnets_tf.scaling.sparsity_fit import FitOptions
from nfnets_tf.scaling.sparsity_law import TrainingCost
from nfnets_tf.scaling.sparsity_study import fit_sparsity_study
from nfnets_tf.scaling.study import Fits, RunColumns, fit_study
from nfnets_tf.train.dry_run import format_table

_PAPER_COLUMNS = RunColumns(
  compute="tpu_v4_core_hours",
  loss="heldout_loss",
  model="model",
  size="parameters",
  epochs="epochs",
  rate=None,
)


@accepts(
  table=PATH,
  extrapolate_from=optional(number(above=0)),
  resamples=integer(1),
  seed=SEED,
  exclude_outliers=flag(),
)
class FitLawsJob:
  """Fits the scaling laws to a table and plots them.

  Writes laws.json, loss.png, rates.png and allocation.png to the work
  directory.

  Args:
    table: path of a CSV file with a row for each run, such as a sweep's
      results.csv.
    columns: names of its columns.
    extrapolate_from: compute at and above which points are predicted from those
      below; None is the geometric mean of the lowest and the highest.
    resamples: of each bootstrap, at least 1.
    seed: of the resamples.
    exclude_outliers: whether points that contradict all others are left out;
      they are named in any case.

  Raises:
    UserError: if `resamples` is not a positive integer.
  """

  def __init__(
    self,
    *,
    table: str,
    columns: RunColumns,
    extrapolate_from: float | None,
    resamples: int,
    seed: int,
    exclude_outliers: bool = True,
  ):
    self.table, self.columns = table, columns
    self.exclude_outliers = exclude_outliers
    self.extrapolate_from = extrapolate_from
    self.resamples, self.seed = resamples, seed

  def plan(self) -> str:
    """Returns the input of the fits."""
    return format_table(
      [("table", self.table), ("resamples", f"{self.resamples:,}")]
    )

  def run(self, context: RunContext) -> str:
    """Writes the files and returns the main results.

    Raises:
      UserError: if the table cannot be read or lacks a column.
    """
    with activity("Fitting the laws"):
      fits = fit_study(
        _read_table(self.table),
        self.columns,
        extrapolate_from=self.extrapolate_from,
        resamples=self.resamples,
        seed=self.seed,
        exclude_outliers=self.exclude_outliers,
      )
    _start(context)
    laws = _write_laws(context, {"table": self.table, **fits.to_json()})
    figures = plots.write_study_figures(fits, self.columns, context.workdir)
    lines = fits.describe() + [("figure", path) for path in figures]
    return format_table([*lines, ("laws", laws)])


@accepts(
  table=PATH,
  columns=built("@run_tables.SparsityColumns()"),
  options=built("@sparsity_fit.FitOptions()"),
  cost=built("@sparsity_law.TrainingCost()"),
  hold_back=integer(0),
)
class FitSparsityLawJob:
  """Fits the law of loss against sparsity to a table and plots it.

  Writes laws.json, optimal_sparsity.csv (the best sparsity over the table's
  range of nonzero parameters and compute), loss.png, optimal_sparsity.png and
  fit.png to the work directory.

  Args:
    table: path of a CSV file with a row for each run.
    columns: names of its columns.
    options: of the fits.
    cost: of training, in FLOPs.
    hold_back: number of the most expensive runs that are also predicted from
      all others.
  """

  def __init__(
    self,
    *,
    table: str,
    columns: SparsityColumns,
    options: FitOptions,
    cost: TrainingCost,
    hold_back: int,
  ):
    self.table, self.columns, self.options = table, columns, options
    self.cost, self.hold_back = cost, hold_back

  def plan(self) -> str:
    """Returns the input of the fits."""
    lines = [(name, f"{n}") for name, n in vars(self.options).items()]
    return format_table([("table", self.table), *lines])

  def run(self, context: RunContext) -> str:
    """Writes the files and returns the main results.

    Raises:
      UserError: if the table cannot be read, lacks a column, has an impossible
        value or does not determine the law.
    """
    with activity("Fitting the law"):
      fits = fit_sparsity_study(
        _read_table(self.table),
        self.columns,
        options=self.options,
        cost=self.cost,
        hold_back=self.hold_back,
      )
    _start(context)
    laws = _write_laws(context, {"table": self.table, **fits.to_json()})
    path = os.path.join(context.workdir, "optimal_sparsity.csv")
    optima = fits.optima().to_csv(index=False, float_format="%.6g")
    write_atomically(path, optima)
    figures = sparsity_plots.write_sparsity_figures(
      fits, self.columns, context.workdir
    )
    lines = fits.describe() + [("figure", path) for path in figures]
    return format_table([*lines, ("optima", path), ("laws", laws)])


@accepts(extrapolate_from=number(above=0), resamples=integer(1), seed=SEED)
class PaperFiguresJob:
  """Plots the scaling paper's figures and fits its law to their points.

  Writes fig1.png, fig2.png, fig3.png, allocation.png, laws.json and
  predicted_core_hours.csv (predicted next to published core-hours) to the work
  directory.

  Args:
    extrapolate_from: TPU-v4 core-hours at and above which losses are predicted
      from those below.
    resamples: of each bootstrap, at least 1.
    seed: of the resamples.

  Raises:
    UserError: if `resamples` is not a positive integer.
  """

  def __init__(self, *, extrapolate_from: float, resamples: int, seed: int):
    self.extrapolate_from = extrapolate_from
    self.resamples, self.seed = resamples, seed

  def plan(self) -> str:
    """Returns the figures and the size of the bootstraps."""
    return format_table(
      [
        ("figures", "1, 2 and 3 of arXiv 2310.16764, and its allocation"),
        ("resamples", f"{self.resamples:,}"),
      ]
    )

  def run(self, context: RunContext) -> str:
    """Writes the files and returns the main results."""
    losses = paper_data.heldout_losses()
    with activity("Fitting the laws"):
      fits = fit_study(
        losses,
        _PAPER_COLUMNS,
        extrapolate_from=self.extrapolate_from,
        resamples=self.resamples,
        seed=self.seed,
      )
    hours = compute.predict_core_hours(
      losses, images_per_epoch=paper_data.JFT_4B_IMAGES
    )
    _start(context)
    for name, figure in _paper_figures(fits).items():
      plots.save_png(figure, os.path.join(context.workdir, name))
    path = os.path.join(context.workdir, "predicted_core_hours.csv")
    write_atomically(path, hours.to_csv(index=False, float_format="%.5g"))
    errors = _summarize_errors(hours)
    content = {
      **fits.to_json(),
      "allocation_by_macs": self._allocation_by_macs(losses),
      "core_hours": {
        "utilization": compute.paper_utilization(),
        "errors": errors,
      },
    }
    _write_laws(context, content)
    lines = fits.describe()
    lines += [
      (f"hours {name}", f"{e['mean']:.1%} off on average, {e['most']:.1%} most")
      for name, e in errors.items()
    ]
    return format_table([*lines, ("files", context.workdir)])

  def _allocation_by_macs(self, losses: pd.DataFrame) -> dict:
    columns = dataclasses.replace(_PAPER_COLUMNS, size="macs")
    points, _ = study.read_runs(losses, columns)
    return allocation.bootstrap_exponents(
      points, resamples=self.resamples, seed=self.seed
    ).to_json()


def _paper_figures(fits: Fits) -> dict:
  """Returns {file name: figure}."""
  hours = "TPU-v4 core-hours"
  rates = paper_data.optimal_learning_rates()
  errors = paper_data.imagenet_errors().rename(
    columns={
      "tpu_v4_core_hours": "compute",
      "imagenet_top1_error_percent": "loss",
    }
  )
  ours = errors["model"].isin(fits.points["model"])
  return {
    "fig1.png": plots.plot_losses(
      errors[ours],
      references=errors[~ours],
      labels={
        "compute": f"{hours} of pre-training",
        "loss": "ImageNet top-1 error after fine-tuning (%)",
      },
    ),
    "fig2.png": plots.plot_losses(
      fits.points.sort_values("size", kind="stable"),
      labels={"compute": hours, "loss": "JFT-4B held-out loss (nats)"},
      power=fits.power,
      offset=fits.offset,
      extrapolation=fits.extrapolation,
    ),
    "fig3.png": plots.plot_rates(
      rates.rename(columns={"learning_rate": "rate"}),
      labels={"epochs": "epochs of JFT-4B", "rate": "best learning rate"},
    ),
    "allocation.png": plots.plot_allocation(fits, labels=vars(_PAPER_COLUMNS)),
  }


def _summarize_errors(hours: pd.DataFrame) -> dict[str, dict[str, float]]:
  """Returns {prediction: mean and largest relative error of core-hours}."""
  names = {
    "by_model_error": "by model",
    "leave_one_out_error": "by other points",
    "by_flops_error": "by FLOPs alone",
    "by_smallest_error": "by FLOPs and the smallest model's hours",
  }
  sizes = hours[list(names)].abs().rename(columns=names)
  return sizes.agg(["mean", "max"]).rename({"max": "most"}).to_dict()


def _read_table(path: str) -> pd.DataFrame:
  if not tf.io.gfile.exists(path):
    raise UserError(
      f"the table {path!r} does not exist; expected a CSV file with a row for"
      " each run, such as a sweep's results.csv."
    )
  if tf.io.gfile.isdir(path):
    raise UserError(
      f"the table {path!r} is a folder; expected a CSV file in it, such as"
      " results.csv of a sweep."
    )
  return run_tables.parse_table(read_bytes(path), path)


def _start(context: RunContext) -> None:
  """Creates the work directory and stores the configuration in it."""
  with report_write_errors(context.workdir):
    tf.io.gfile.makedirs(context.workdir)
  context.on_start()
  path = os.path.join(context.workdir, "config.gin")
  write_atomically(path, context.config_text)


def _write_laws(context: RunContext, content: dict) -> str:
  """Writes laws.json and returns its path."""
  path = os.path.join(context.workdir, "laws.json")
  text = json.dumps(_without_nan(content), indent=1, allow_nan=False)
  write_atomically(path, text + "\n")
  return path


def _without_nan(value):
  """Returns a value with null for numbers that JSON does not have."""
  if isinstance(value, dict):
    return {key: _without_nan(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_nan(each) for each in value]
  unknown = isinstance(value, float) and not math.isfinite(value)
  return None if unknown else value
