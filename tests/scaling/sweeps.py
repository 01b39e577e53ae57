"""Sweeps in every state, for the tests of their report."""

import itertools
import math

from nfnets_tf.scaling import sweep_plan
from nfnets_tf.scaling.board import Board
from nfnets_tf.scaling.engines import LocalProcesses
from nfnets_tf.scaling.sweep import Sweep
from nfnets_tf.scaling.tuning import GridSearch

SIZES = {"W8": 1.0, "W16": 2.0, "W32": 4.0, "W64": 8.0}
RATES = (0.05, 0.1, 0.2)


def make_sweep(grid, *, tuned=True) -> Sweep:
  """A sweep of a grid, with or without a search for the rate."""
  search = GridSearch(
    macro="PEAK_LR", start=0.1, factor=2.0, both_sides=True, most_trials=8
  )
  return Sweep(
    grid=grid,
    tuning=search if tuned else None,
    engine=LocalProcesses(at_once=1),
    loss="heldout_loss",
    lease_seconds=60,
    poll_seconds=1,
    price=None,
    report=None,
  )


def study_grid() -> list[dict]:
  """Four sizes by five budgets."""
  return [
    {"VARIANT": name, "EPOCHS": epochs}
    for name, epochs in itertools.product(SIZES, (1, 2, 4, 8, 16))
  ]


def loss_of(bindings) -> float:
  """A law with an optimum of size and epochs, and of the rate at 0.1."""
  size = SIZES[bindings["VARIANT"]]
  rate = abs(math.log2(bindings.get("PEAK_LR", 0.1) / 0.1))
  return 0.5 + 0.6 * size**-0.4 + 0.6 * bindings["EPOCHS"] ** -0.4 + 0.05 * rate


def figures(cell) -> dict:
  """What a point of the study costs."""
  size = SIZES[cell.bindings["VARIANT"]]
  epochs = cell.bindings["EPOCHS"]
  return {
    "parameters": 1e4 * size,
    "macs": 1e6 * size,
    "epochs": epochs,
    "flops": 6e9 * size * epochs,
    "tpu_v4_core_hours": 1e-6 * size * epochs,
  }


def finish(board: Board, sweep: Sweep, cells=None, *, plan=True) -> None:
  """Writes the plan, and the records of all trials of some cells."""
  if plan:
    table = sweep_plan.plan_sweep(sweep.cells, figures, None)
    sweep_plan.write_table(table, board.plan, board.root)
  for cell in sweep.cells if cells is None else cells:
    while trials := sweep.trials(cell, board.records()):
      for trial in trials:
        board.write(
          trial.name,
          "done",
          cell=cell.name,
          bindings=trial.bindings,
          result={"heldout_loss": loss_of(trial.bindings)},
          seconds=2.0,
        )


def results_of(board: Board, sweep: Sweep):
  """Returns the table of all points."""
  records = board.records()
  left = [p for cell in sweep.cells for p in sweep.trials(cell, records)]
  return sweep_plan.gather_results(board, sweep.cells, left)
