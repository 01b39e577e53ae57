"""How the time of a training step grows.

  python -m benchmarks.step_growth --output=FOLDER

Times steps of one size after another against batch size, resolution, depth and
width, each in a process of its own and next to a product of large matrices, so
that a machine whose speed changes is fair. Then as many processes as there are
cores, one core each, against one process on all of them. Writes step_growth.csv
and step_growth.png. The last line is JSON:

  seconds_per_flop_over_matmul, fixed_seconds, seconds_per_parameter: of
      t = fixed + a * FLOPs + b * parameters, fitted to all steps; a over
      that of the product of matrices
  largest_error: of the fit, relative
  processes_over_threads: images per second
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from benchmarks import entry
from benchmarks.lockstep import Worker

_OUTPUT = flags.DEFINE_string("output", None, "Folder.", required=True)
_POLICY = flags.DEFINE_string("policy", "float32", "Keras' precision policy.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps to time of each size.")


class Step(NamedTuple):
  """The size of a step."""

  variant: str
  pixels: int
  batch: int


SERIES = {
  "batch": [Step("F0", 128, n) for n in (1, 2, 4, 8, 16, 32)],
  "resolution": [Step("F0", n, 8) for n in (64, 96, 128, 160, 192, 224)],
  "depth": [Step(f"F{n}", 128, 8) for n in range(4)],
  "width": [Step(name, 128, 8) for name in ("F0", "F0+")],
}


def main() -> None:
  """Writes the table and the plot, and prints the figures as JSON."""
  rows = {}
  for step in dict.fromkeys(
    step for steps in SERIES.values() for step in steps
  ):
    rows[step] = _measure(step)
    print(step, {k: f"{v:.4g}" for k, v in rows[step].items()}, flush=True)
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  figures, predicted = _fit(rows)
  _write(output / "step_growth.csv", rows, predicted)
  _plot(output / "step_growth.png", rows, predicted)
  figures["processes_over_threads"] = _processes_over_threads()
  print(json.dumps({k: float(f"{v:.3g}") for k, v in figures.items()}))


def _worker(step: Step, cores=None) -> Worker:
  return Worker(
    sys.executable,
    "benchmarks.training_step",
    f"--serve={_POLICY.value}:{step.batch}",
    f"--variant={step.variant}",
    f"--image_size={step.pixels}",
    cores=cores,
  )


def _measure(step: Step) -> dict[str, float]:
  """Returns what a step takes, in seconds and in products of matrices."""
  worker = _worker(step)
  times = {"": [], "matmul": []}
  for name in times:
    worker(name)
  for _ in range(_STEPS.value):
    for name, seconds in times.items():
      start = time.perf_counter()
      worker(name)
      seconds.append(time.perf_counter() - start)
  worker.close()
  facts = worker.facts
  return {
    "seconds": statistics.median(times[""]),
    "matmul_seconds": statistics.median(times["matmul"]),
    "matmul_flops": facts["matmul_flops"],
    "flops": facts["step_flops"],
    "parameters": facts["parameters"],
    "peak_gb": facts["peak_gb"],
  }


def _fit(rows) -> tuple[dict[str, float], dict[Step, float]]:
  """Returns (the fit's figures, {step: predicted seconds})."""
  own = np.array(
    [row["matmul_flops"] / row["matmul_seconds"] for row in rows.values()]
  )
  rate = np.median(own)  # so that all are seconds of one machine
  seconds = np.array([r["seconds"] for r in rows.values()]) * own / rate
  terms = np.array([[1, r["flops"], r["parameters"]] for r in rows.values()])
  solution = np.linalg.lstsq(
    terms / seconds[:, None], np.ones_like(seconds), rcond=None
  )[0]
  fitted = terms @ solution
  figures = {
    "seconds_per_flop_over_matmul": solution[1] * rate,
    "fixed_seconds": solution[0],
    "seconds_per_parameter": solution[2],
    "largest_error": np.abs(fitted / seconds - 1).max(),
  }
  # As the machine was while the step was measured.
  return figures, dict(zip(rows, fitted * rate / own))


def _processes_over_threads() -> float:
  """Returns images/s of a process per core over those of one on all cores."""
  cores = sorted(os.sched_getaffinity(0))
  step = Step("F0", 128, 8)
  together = _worker(step)
  apart = [_worker(step, cores=[core]) for core in cores]
  ratios = []
  for turn in range(_STEPS.value + 1):
    start = time.perf_counter()
    for _ in apart:
      together()
    middle = time.perf_counter()
    for worker in apart:
      worker.begin()
    for worker in apart:
      worker.end()
    if turn:
      ratios.append((middle - start) / (time.perf_counter() - middle))
  for worker in (together, *apart):
    worker.close()
  return statistics.median(ratios)


def _write(path: pathlib.Path, rows, predicted) -> None:
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    columns = list(next(iter(rows.values())))
    writer.writerow([*Step._fields, *columns, "fitted_seconds"])
    for step, row in rows.items():
      writer.writerow([*step, *row.values(), predicted[step]])


def _plot(path: pathlib.Path, rows, predicted) -> None:
  figure = Figure(figsize=(12, 3.2), layout="constrained")
  for axes, (name, steps) in zip(
    figure.subplots(1, len(SERIES)), SERIES.items()
  ):
    at = {"batch": lambda s: s.batch, "resolution": lambda s: s.pixels}
    x = [at.get(name, lambda s: s.variant)(step) for step in steps]
    axes.plot(
      x, [s.batch / rows[s]["seconds"] for s in steps], "o", label="measured"
    )
    axes.plot(
      x, [s.batch / predicted[s] for s in steps], "-", label="fitted to all"
    )
    axes.set_ylim(bottom=0)
    sizes = (
      steps[0].variant,
      f"{steps[0].pixels} px",
      f"{steps[0].batch} images",
    )
    fixed = [
      size for size, values in zip(sizes, zip(*steps)) if len(set(values)) == 1
    ]
    axes.set_title(f"{name} ({', '.join(fixed)})", fontsize=9)
    axes.set_xlabel({"resolution": "pixels per side"}.get(name, name))
  figure.axes[0].set_ylabel("images/s")
  figure.axes[0].legend(loc="lower right")
  figure.savefig(path, dpi=120)


if __name__ == "__main__":
  entry.run(main)
