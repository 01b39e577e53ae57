"""The study of sparsity in docs/sparsity.md, from a folder of CIFAR-10.

  python -m benchmarks.sparsity_study --cifar10=FOLDER --workdir=WORKDIR

FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg. Networks of three widths
are pruned to four sparsities over three budgets, and to 2:4 over the second one
(gin/sweeps/cifar10_sparse.gin); the law of sparsity is fitted to the runs. An
interrupted study resumes. WORKDIR gets unstructured/ and two_of_four/ (the
sweeps), runs.csv, and law/ (laws.json and its figures).
"""

import json
import pathlib
import subprocess
import sys

import pandas as pd
from absl import flags

from benchmarks import entry

_CIFAR10 = flags.DEFINE_string("cifar10", None, "The folder.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "See above.", required=True)
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Points that run together.")

_ROOT = pathlib.Path(__file__).parents[1]
_BUDGET = 1.5  # epochs, for the comparison of structures
_COLUMNS = [
  "VARIANT",
  "EPOCHS",
  "structure",
  "sparsity",
  "parameters",
  "nonzero_parameters",
  "live_weights",
  "images",
  "flops",
  "heldout_loss",
  "heldout_top1",
]


def main() -> None:
  """Runs the study, or resumes it; the last line of output is JSON."""
  workdir = pathlib.Path(_WORKDIR.value).resolve()
  unstructured = _sweep(workdir / "unstructured")
  groups = _sweep(
    workdir / "two_of_four",
    "config.grid.SPARSITY = ('2:4',)",
    f"config.grid.EPOCHS = ({_BUDGET},)",
  )
  unstructured["structure"], groups["structure"] = "unstructured", "2:4"
  runs = pd.concat([unstructured, groups])[_COLUMNS]
  runs.to_csv(workdir / "runs.csv", index=False, float_format="%.6g")
  dense = unstructured[unstructured["sparsity"] == 0]
  product = dense["live_weights"] * dense["images"]
  flops = float((dense["flops"] / product).median())
  _launch(
    "gin/fit_sparsity_law.gin",
    workdir / "law",
    f"TABLE = {str(workdir / 'runs.csv')!r}",
    "run_tables.SparsityColumns.nonzero = 'live_weights'",
    "run_tables.SparsityColumns.data = 'images'",
    "run_tables.SparsityColumns.structure = 'structure'",
    f"sparsity_law.TrainingCost.flops = {flops:.6g}",
  )
  print(runs.to_string(index=False))
  half = runs[(runs["sparsity"] == 0.5) & (runs["EPOCHS"] == _BUDGET)]
  losses = half.pivot(
    index="VARIANT", columns="structure", values="heldout_loss"
  )
  ratio = (losses["2:4"] / losses["unstructured"]).round(4)
  print(json.dumps({"two_of_four_over_unstructured_loss": ratio.to_dict()}))


def _sweep(workdir: pathlib.Path, *params: str) -> pd.DataFrame:
  """Returns the finished points of a sweep, run where they are missing."""
  _launch(
    "gin/sweeps/cifar10_sparse.gin",
    workdir,
    f"DATA_DIR = {str(pathlib.Path(_CIFAR10.value).resolve())!r}",
    f"engines.LocalProcesses.at_once = {_AT_ONCE.value}",
    *params,
  )
  results = pd.read_csv(workdir / "results.csv")
  return results[results["state"] == "done"].copy()


def _launch(gin_file: str, workdir: pathlib.Path, *params: str) -> None:
  command = [sys.executable, "launch/train.py", f"--gin_file={gin_file}"]
  command += [f"--gin_param={param}" for param in params]
  subprocess.run([*command, f"--workdir={workdir}"], cwd=_ROOT, check=True)


if __name__ == "__main__":
  entry.run(main)
