"""Fits the published tables of sparse ViT and T5 as their authors do, and here.

  python -m benchmarks.published_sparsity --vit=vit_jft.csv --t5=t5_c4.csv

The tables are those of google-research/jaxpruner (projects/bigsparse) with
the columns sparsity, nonzero_params, heldout_loss, and examples (ViT) or steps
(T5). The authors minimize the mean Huber loss by BFGS from 25 random starts,
which ends where no derivative exceeds 1e-5.
"""

import os
import sys
import time

import numpy as np
import pandas as pd
from absl import flags
from scipy import optimize

from benchmarks import entry
from nfnets_tf.scaling.sparsity_fit import FitOptions, fit_sparsity_law
from nfnets_tf.scaling.sparsity_law import SparsityLaw

_VIT = flags.DEFINE_string("vit", "vit_jft.csv", "The table of ViT on JFT-4B.")
_T5 = flags.DEFINE_string("t5", "t5_c4.csv", "The table of T5 on C4.")

_NAMES = "a b c d e f g".split()
_PUBLISHED = {
  "ViT": (1.30485, 0.82101, 2.07506, 0.39223, 0.27818, 0.88979, 4.51669),
  "T5": (0.56779, 0.72161, 1.52265, 0.24513, 0.63362, 0.20271, 0.65074),
}
_STARTS = 25
_HELD_OUT = (0.75, 48 * 12 * 1024**2, 500_000, 1.4827780)  # of T5


def main() -> None:
  """Prints the coefficients of each fit and how well it does."""
  for flag in (_VIT, _T5):
    if not os.path.isfile(flag.value):
      sys.exit(
        f"error: --{flag.name}={flag.value} is no file; expected a table that"
        " the authors publish, see docs/sparsity.md."
      )
  runs = (
    ("ViT", _VIT.value, "examples", 1e9, FitOptions(0.01, False, 50, 0, 0), 0),
    ("T5", _T5.value, "steps", 1e5, FitOptions(0.001, True, 50, 0, 0), 1),
  )
  for name, path, data, unit, options, seed in runs:
    table = pd.read_csv(path).rename(
      columns={"nonzero_params": "nonzero", data: "data"}
    )
    table = table.rename(columns={"heldout_loss": "loss"})
    began = time.perf_counter()
    ours = fit_sparsity_law(table, options)
    seconds = time.perf_counter() - began
    print(f"{name}: {len(table)} runs, fitted here in {seconds:.2f} s")
    print(f"{'':>18} {' '.join(f'{n:>8}' for n in _NAMES)}  Huber loss")
    objective = _objective(table, unit, options)
    fits = {
      "published": np.array(_PUBLISHED[name]),
      "authors' procedure": _fit_as_published(objective, seed),
      "here": _coefficients(ours, unit),
    }
    for title, values in fits.items():
      text = " ".join(f"{value:8.5f}" for value in values)
      print(f"{title:>18} {text}  {objective(values):.4e}")
      if name == "T5":
        _print_held_out(_law(values, unit))


def _law(values, unit) -> SparsityLaw:
  """Returns the law of coefficients [7] for millions of parameters."""
  a, b, c, d, e, f, g = values
  return SparsityLaw(
    a * 1e6**d, b, c * 1e6**d, d, abs(e) ** (1 / f) * unit, f, g
  )


def _coefficients(law: SparsityLaw, unit: float) -> np.ndarray:
  size = 1e6**-law.b_N
  of_data = (law.a_D / unit) ** law.b_D
  return np.array(
    [law.a_S * size, law.b_S, law.c_S * size, law.b_N, of_data, law.b_D, law.c]
  )


def _objective(table, unit, options):
  """Returns the function of the coefficients [7] that the authors minimize."""
  names = ["sparsity", "nonzero", "data", "loss"]
  sparsity, nonzero, data, loss = table[names].to_numpy(float).T
  density, nonzero, data = 1.0 - sparsity, nonzero / 1e6, data / unit
  delta = options.huber_delta

  def objective(values):
    a, b, c, d, e, f, g = values
    with np.errstate(all="ignore"):
      # Where BFGS ends depends on the rounding of this very expression.
      fit = (a * (1 / density) ** -b + c) * nonzero**-d + e * data**-f + g
      off = np.log(fit) - np.log(loss) if options.log_loss else fit - loss
    size = np.abs(off)
    far = size > delta
    total = np.sum(delta * (size[far] - 0.5 * delta))
    return (total + np.sum(0.5 * size[~far] ** 2)) / len(size)

  return objective


def _fit_as_published(objective, seed: int) -> np.ndarray:
  generator = np.random.RandomState(seed)
  results = [
    optimize.minimize(objective, generator.uniform(size=7))
    for _ in range(_STARTS)
  ]
  return min((r for r in results if r.success), key=lambda r: r.fun).x


def _print_held_out(law: SparsityLaw) -> None:
  *run, loss = _HELD_OUT
  predicted = float(law.predict(*run))
  error = predicted / loss - 1.0
  print(f"{'':>18} held out {loss:.4f}: {predicted:.4f} ({error:+.2%})")


if __name__ == "__main__":
  entry.run(main)
