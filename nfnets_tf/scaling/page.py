"""The report of a sweep: one page, written again whenever a point has ended."""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd

from nfnets_tf.errors import require_int
from nfnets_tf.fileio import write_atomically
from nfnets_tf.scaling import page_html
from nfnets_tf.scaling import page_sections as parts
from nfnets_tf.scaling.board import PENDING, RUNNING, Board
from nfnets_tf.scaling.overview import Overview, overview_of
from nfnets_tf.scaling.page_laws import Laws, fit_laws, law_points

LOGGER = logging.getLogger("nfnets_tf")

_BUDGETS = 12


class SweepPage:
  """Writes report.html: figures, tables, failures and the configuration.

  The page needs nothing but itself. What is not known yet it says in words. A
  page that cannot be written is a warning, and the sweep goes on.

  Args:
    resamples: of the bootstrap behind the laws' intervals.
    seed: of the resamples.
    refresh_seconds: after which a browser loads the page again as long as there
      are points to do; None is never.
  """

  def __init__(self, *, resamples: int, seed: int, refresh_seconds: int | None):
    require_int("page.SweepPage.resamples", resamples, 1)
    require_int("page.SweepPage.seed", seed, 0)
    if refresh_seconds is not None:
      require_int("page.SweepPage.refresh_seconds", refresh_seconds, 1)
    self.resamples, self.seed = resamples, seed
    self.refresh_seconds = refresh_seconds
    self._laws = None

  def __call__(
    self, board: Board, results: pd.DataFrame, *, sweep, configuration: str
  ) -> None:
    """Writes the page.

    Args:
      board: state of the sweep.
      results: of `sweep_plan.gather_results`.
      sweep: the `sweep.Sweep`.
      configuration: all of it, as text.
    """
    try:
      page = self.render(
        board, results, sweep=sweep, configuration=configuration
      )
      write_atomically(board.page, page)
    except Exception as error:  # the sweep is worth more than its report
      LOGGER.warning("%s could not be written: %s", board.page, error)

  def render(
    self, board: Board, results: pd.DataFrame, *, sweep, configuration: str
  ) -> str:
    """Returns the page; arguments as in a call."""
    view = overview_of(board, results, sweep)
    found = self._fit(view)
    counts = view.counts()
    left = counts[RUNNING] + counts[PENDING]
    name = os.path.basename(board.root.rstrip("/")) or board.root
    return page_html.document(
      name,
      [
        parts.head(name, view, self.refresh_seconds if left else None),
        parts.section("Failures", parts.failures, view),
        parts.section("Figures", parts.figures, view, found),
        parts.section("Fitted laws", parts.fitted_laws, found),
        parts.section("Best of each cell", parts.best_of_cells, view),
        parts.section("All points", parts.all_points, view, results),
        parts.section("Plan", parts.plan, board),
        parts.configuration(configuration),
      ],
      refresh_seconds=self.refresh_seconds if left else None,
    )

  def _fit(self, view: Overview) -> Laws:
    points = law_points(view)
    if self._laws is None or not points.equals(self._laws.points):
      try:
        self._laws = fit_laws(
          points, budgets=_BUDGETS, resamples=self.resamples, seed=self.seed
        )
      except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        LOGGER.warning("The laws of the sweep could not be fitted: %s", error)
        self._laws = Laws(points)
    return self._laws
