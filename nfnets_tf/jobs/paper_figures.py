"""The job that draws the scaling paper's figures and fits its law."""

from __future__ import annotations

import dataclasses
import os

import pandas as pd

from nfnets_tf.errors import require_int
from nfnets_tf.fileio import write_atomically
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.law_files import begin, two_columns, write_json
from nfnets_tf.scaling import compute, frontier, paper_points
from nfnets_tf.scaling.figures import draw_errors, draw_losses, draw_rates
from nfnets_tf.scaling.observations import Columns, read_points
from nfnets_tf.scaling.study import BUDGETS, Fits, fit_study
from nfnets_tf.scaling.study_figures import draw_allocation

_PAPER = Columns(
  compute="tpu_v4_core_hours",
  loss="heldout_loss",
  model="model",
  size="parameters",
  epochs="epochs",
  rate=None,
)


class PaperFiguresJob:
  """Draws the scaling paper's figures, and fits its law, out of its points.

  Below the work directory: fig1.png, fig2.png, fig3.png, allocation.png,
  laws.json and predicted_core_hours.csv, hours by FLOPs beside the paper's.

  Args:
    held_back_from: TPU-v4 core-hours from which on points are predicted.
    resamples: of each bootstrap.
    seed: of the resamples.
  """

  def __init__(self, *, held_back_from: float, resamples: int, seed: int):
    require_int("PaperFiguresJob.resamples", resamples, 1)
    self.held_back_from = held_back_from
    self.resamples, self.seed = resamples, seed

  def plan(self) -> str:
    """Returns what would be drawn."""
    return two_columns(
      [
        ("figures", "1, 2 and 3 of arXiv 2310.16764, and its allocation"),
        ("resamples", f"{self.resamples:,}"),
      ]
    )

  def run(self, context: RunContext) -> str:
    """Writes the files; returns the main numbers."""
    sizes = paper_points.models()
    losses = paper_points.heldout_losses().merge(sizes, on="model")
    fits = fit_study(
      losses,
      _PAPER,
      held_back_from=self.held_back_from,
      resamples=self.resamples,
      seed=self.seed,
    )
    hours = compute.predict_core_hours(
      losses,
      compute.paper_macs(),
      images_per_epoch=paper_points.JFT_4B_IMAGES,
    )
    begin(context)
    self._draw(fits, context.workdir, list(sizes["model"]))
    path = os.path.join(context.workdir, "predicted_core_hours.csv")
    write_atomically(path, hours.to_csv(index=False, float_format="%.5g"))
    told = _tell_hours(hours)
    by_macs = self._allocation_by_macs(losses)
    content = {**fits.to_json(), "allocation_by_macs": by_macs}
    write_json(context.workdir, {**content, "core_hours": told})
    lines = fits.describe()
    lines += [
      (f"hours {name}", f"{e['mean']:.1%} off on average, {e['most']:.1%} most")
      for name, e in told["errors"].items()
    ]
    return two_columns([*lines, ("files", context.workdir)])

  def _allocation_by_macs(self, losses: pd.DataFrame) -> dict:
    columns = dataclasses.replace(_PAPER, size="macs")
    points, _ = read_points(losses, columns)
    return frontier.bootstrap_exponents(
      points,
      size="size",
      budgets=BUDGETS,
      resamples=self.resamples,
      seed=self.seed,
    ).to_json()

  def _draw(self, fits: Fits, workdir: str, models: list[str]) -> None:
    hours = "TPU-v4 core-hours"
    draw_losses(
      fits.points,
      os.path.join(workdir, "fig2.png"),
      models=models,
      power=fits.power,
      offset=fits.offset,
      held_back=fits.held_back,
      labels={"compute": hours, "loss": "JFT-4B held-out loss (nats)"},
    )
    rates = paper_points.optimal_learning_rates()
    draw_rates(
      rates.rename(columns={"learning_rate": "rate"}),
      os.path.join(workdir, "fig3.png"),
      models=list(dict.fromkeys(rates["model"])),
      labels={"epochs": "epochs of JFT-4B", "rate": "best learning rate"},
    )
    errors = paper_points.imagenet_errors().rename(
      columns={
        "tpu_v4_core_hours": "compute",
        "imagenet_top1_error_percent": "error",
      }
    )
    known = errors["model"].isin(models)
    draw_errors(
      errors[known],
      errors[~known],
      os.path.join(workdir, "fig1.png"),
      models=[model for model in models if model in set(errors["model"])],
      labels={
        "compute": f"{hours} of pre-training",
        "error": "ImageNet top-1 error after fine-tuning (%)",
      },
    )
    path = os.path.join(workdir, "allocation.png")
    draw_allocation(fits, _PAPER, path, models=models)


def _tell_hours(hours: pd.DataFrame) -> dict:
  errors = {}
  for name, column in (
    ("by model", "by_model_error"),
    ("by other points", "left_out_error"),
    ("by FLOPs alone", "by_flops_error"),
  ):
    size = hours[column].abs()
    errors[name] = {"mean": float(size.mean()), "most": float(size.max())}
  return {
    "utilisation": compute.paper_utilisation(),
    "errors": errors,
  }
