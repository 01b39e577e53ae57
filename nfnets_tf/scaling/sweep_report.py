"""The HTML report of a sweep: states, figures, tables, configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import pandas as pd


@dataclasses.dataclass(frozen=True)
class SweepStatus:
  """Snapshot of a sweep, from which its report is rendered.

  A grid point ("cell") is one combination of the axes' values; where a macro is
  tuned it has several trials ("points"), otherwise one of the same name.

  Attributes:
    name: of the sweep, shown as the title.
    loss: column of `results` that is compared; lower is better.
    tuned: macro that is tuned at every grid point, or None.
    grid: {name of a grid point: {macro: value}}, in the grid's order.
    results: the table results.csv, a row per known trial: point, cell, state
      ("done", "failed", "running" or "pending"), the macros, the plan's
      numbers, the result's numbers, seconds, reason.
    diverged: names of the failed trials that diverged.
    plan: the table plan.csv, a row per grid point: point, the macros,
      parameters, macs, flops, tpu_v4_core_hours, ...; None before planning.
    metrics_files: {trial: path of its run's metrics.jsonl}, the source of the
      learning curves; files that do not exist are skipped.
    config_text: the resolved configuration.
  """

  name: str
  loss: str
  tuned: str | None
  grid: Mapping[str, Mapping[str, object]]
  results: pd.DataFrame
  diverged: Collection[str]
  plan: pd.DataFrame | None
  metrics_files: Mapping[str, str]
  config_text: str
