"""What is known of a sweep, in columns of fixed names."""

import numpy as np
import pytest

from nfnets_tf.scaling.overview import Overview, overview_of
from nfnets_tf.scaling.sweep_store import SweepStore, Trial
from tests.scaling import sweeps


@pytest.fixture
def board(tmp_path):
  return SweepStore(str(tmp_path))


def look(board, sweep) -> Overview:
  return overview_of(sweeps.status_of(board, sweep))


def test_the_best_of_each_cell_is_that_of_the_lowest_loss(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(board, sweep)
  view = look(board, sweep)
  assert len(view.trials) == 60 and len(view.best) == len(view.cells) == 20
  for cell in view.cells.itertuples():
    own = view.trials[view.trials["cell"] == cell.cell]
    assert cell.loss == own["loss"].min() and cell.value == 0.1
    assert not cell.edge and not cell.open and cell.trials == 3
  assert view.counts() == {"done": 60, "failed": 0, "running": 0, "pending": 0}
  assert view.curves == ("W8", "W16", "W32", "W64")
  assert (view.running, view.across, view.tuned) == (
    "EPOCHS",
    "compute",
    "PEAK_LR",
  )


def test_a_best_that_has_no_neighbour_yet_is_an_edge(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  cell = sweep.points[0]
  (trial,) = sweep.next_trials(cell, {})
  board.finish(trial, "done", result={"heldout_loss": 1.0}, seconds=1.0)
  row = look(board, sweep).cells.iloc[0]
  assert row["edge"] and row["open"] and row["trials"] == 1


def test_what_diverged_or_failed_has_no_loss(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  for rate, diverged in ((0.1, True), (0.05, False)):
    bindings = {**sweep.points[0].bindings, "PEAK_LR": rate}
    name = f"{sweep.points[0].name},PEAK_LR={rate}"
    trial = Trial(name, sweep.points[0].name, bindings)
    board.finish(trial, "failed", reason="why", diverged=diverged)
  view = look(board, sweep)
  failed = view.trials[view.trials["state"] == "failed"]
  assert list(failed["diverged"]) == [False, True]
  assert failed["loss"].isna().all() and set(failed["reason"]) == {"why"}
  assert view.best.empty


def test_without_costs_curves_run_along_their_axis(board):
  sweep = sweeps.make_sweep(sweeps.study_grid(), tuned=False)
  sweeps.finish(board, sweep, plan=False)
  view = look(board, sweep)
  assert view.across == "along" and view.tuned is None
  assert np.isnan(view.cells["compute"]).all()
