"""Sweeps in every state, for the tests of their report."""

import itertools
import math

from nfnets_tf.scaling import sweep_tables
from nfnets_tf.scaling.engines import LocalProcesses
from nfnets_tf.scaling.sweep import GridSearch, Sweep
from nfnets_tf.scaling.sweep_store import DONE, SweepStore
from nfnets_tf.scaling.sweep_tables import SweepStatus

SIZES = {"W8": 1.0, "W16": 2.0, "W32": 4.0, "W64": 8.0}


def make_sweep(grid, *, tuned=True) -> Sweep:
  """Returns a sweep of a grid, with or without a search for the rate."""
  search = GridSearch(
    macro="PEAK_LR", start=0.1, factor=2.0, both_sides=True, most_trials=8
  )
  return Sweep(
    grid=grid,
    tuning=search if tuned else None,
    engine=LocalProcesses(at_once=1),
    loss="heldout_loss",
    poll_seconds=1,
    price=None,
    report=None,
  )


def study_grid() -> list[dict]:
  """Returns four sizes by five budgets."""
  return [
    {"VARIANT": name, "EPOCHS": epochs}
    for name, epochs in itertools.product(SIZES, (1, 2, 4, 8, 16))
  ]


def loss_of(bindings) -> float:
  """A law with an optimum of size and epochs, and of the rate at 0.1."""
  size = SIZES[bindings["VARIANT"]]
  rate = abs(math.log2(bindings.get("PEAK_LR", 0.1) / 0.1))
  return 0.5 + 0.6 * size**-0.4 + 0.6 * bindings["EPOCHS"] ** -0.4 + 0.05 * rate


def figures(point) -> dict:
  """Returns the cost of a point of the study."""
  size = SIZES[point.bindings["VARIANT"]]
  epochs = point.bindings["EPOCHS"]
  return {
    "parameters": 1e4 * size,
    "macs": 1e6 * size,
    "epochs": epochs,
    "flops": 6e9 * size * epochs,
    "tpu_v4_core_hours": 1e-6 * size * epochs,
  }


def finish(store: SweepStore, sweep: Sweep, points=None, *, plan=True) -> None:
  """Writes the plan, and the records of all trials of some points."""
  if plan:
    table = sweep_tables.plan_table(sweep.points, figures, None)
    sweep_tables.write_table(table, store.plan)
  for point in sweep.points if points is None else points:
    while trials := sweep.next_trials(point, store.trials()):
      for trial in trials:
        result = {"heldout_loss": loss_of(trial.bindings)}
        store.finish(trial, DONE, result=result, seconds=2.0)


def status_of(store: SweepStore, sweep: Sweep, config_text="") -> SweepStatus:
  """Returns the snapshot from which the report is rendered."""
  trials, plan = store.trials(), sweep_tables.read_table(store.plan)
  return SweepStatus(
    name="w",
    loss=sweep.loss,
    tuned=sweep.tuning and sweep.tuning.macro,
    grid={point.name: point.bindings for point in sweep.points},
    results=sweep_tables.results_table(sweep, trials, plan),
    plan=plan,
    metrics_files={},
    config_text=config_text,
  )
