"""The report of a sweep: one page, written again whenever a point has ended."""

from __future__ import annotations

import logging

import numpy as np

from nfnets_tf.errors import require_int
from nfnets_tf.fileio import write_atomically
from nfnets_tf.scaling import page_html
from nfnets_tf.scaling import page_sections as parts
from nfnets_tf.scaling.overview import Overview, overview_of
from nfnets_tf.scaling.page_laws import Laws, fit_laws, law_points
from nfnets_tf.scaling.sweep_report import SweepStatus
from nfnets_tf.scaling.sweep_store import PENDING, RUNNING

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

  def __call__(self, status: SweepStatus, path: str) -> None:
    """Writes the page to a path, local or gs://."""
    try:
      write_atomically(path, self.render(status))
    except Exception as error:  # the sweep is worth more than its report
      LOGGER.warning("%s could not be written: %s", path, error)

  def render(self, status: SweepStatus) -> str:
    """Returns the page."""
    view = overview_of(status)
    found = self._fit(view)
    counts = view.counts()
    left = counts[RUNNING] + counts[PENDING]
    return page_html.document(
      status.name,
      [
        parts.head(status.name, view, self.refresh_seconds if left else None),
        parts.section("Failures", parts.failures, view),
        parts.section("Figures", parts.figures, view, found),
        parts.section("Fitted laws", parts.fitted_laws, found),
        parts.section("Best of each cell", parts.best_of_cells, view),
        parts.section("All points", parts.all_points, view, status.results),
        parts.section("Plan", parts.plan, status.plan),
        parts.configuration(status.config_text),
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
