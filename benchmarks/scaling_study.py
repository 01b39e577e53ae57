"""The scaling study of docs/scaling_study.md, from a folder of CIFAR-10.

  python -m benchmarks.scaling_study --cifar10=FOLDER --workdir=WORKDIR

FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg. Six classes are trained on
by gin/sweeps/cifar10.gin, the law is fitted, and the network of every cell's
best rate is fine-tuned on the other four, with few images, from three seeds.
Every part goes on where it was stopped. Below WORKDIR: pretrain/ and finetune/
with the sweeps, law/ with laws.json and its figures, finetuned.csv and
finetuned.png.
"""

import json
import os
import pathlib
import subprocess
import sys

import pandas as pd
from absl import flags

from nfnets_tf.scaling.drawing import logarithmic, looks, picture

_CIFAR10 = flags.DEFINE_string("cifar10", None, "The folder.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "See above.", required=True)
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Points that run together.")

_ROOT = pathlib.Path(__file__).parents[1]
_PRETRAINED_CLASSES = 6
_IMAGES_A_CLASS = 500  # of the others, to fine-tune with


def main() -> None:
  """Makes the study, or goes on with it."""
  flags.FLAGS(sys.argv)
  workdir = pathlib.Path(_WORKDIR.value).resolve()
  source = pathlib.Path(_CIFAR10.value).resolve()
  names = sorted(path.name for path in (source / "train").iterdir())
  first, others = names[:_PRETRAINED_CLASSES], names[_PRETRAINED_CLASSES:]
  _link(source, workdir / "data" / "pretrain", first, None)
  _link(source, workdir / "data" / "held_back", others, _IMAGES_A_CLASS)
  _sweep("cifar10", workdir / "pretrain", workdir / "data" / "pretrain")
  results = pd.read_csv(workdir / "pretrain" / "results.csv")
  _launch(
    "gin/fit_laws.gin",
    workdir / "law",
    f"TABLE = {str(workdir / 'pretrain' / 'results.csv')!r}",
  )
  best = _best(results)
  models = [
    {
      "VARIANT": row.VARIANT,
      "WEIGHTS": str(workdir / "pretrain" / "points" / row.point),
    }
    for row in best.itertuples()
  ]
  _sweep(
    "cifar10_finetune",
    workdir / "finetune",
    workdir / "data" / "held_back",
    f"config.grid.MODEL = {models!r}",
  )
  _compare(best, workdir)


def _link(source, target, names, count) -> None:
  for split in ("train", "test"):
    for name in names:
      images = sorted((source / split / name).iterdir())
      folder = target / split / name
      folder.mkdir(parents=True, exist_ok=True)
      for image in images[: count if split == "train" else None]:
        if not os.path.lexists(folder / image.name):
          (folder / image.name).symlink_to(image)


def _launch(gin_file: str, workdir: pathlib.Path, *params: str) -> None:
  command = [sys.executable, "launch/train.py", f"--gin_file={gin_file}"]
  command += [f"--gin_param={param}" for param in params]
  subprocess.run([*command, f"--workdir={workdir}"], cwd=_ROOT, check=True)


def _sweep(name: str, workdir, data, *params: str) -> None:
  at_once = f"engines.LocalProcesses.at_once = {_AT_ONCE.value}"
  file = f"gin/sweeps/{name}.gin"
  _launch(file, workdir, f"DATA_DIR = {str(data)!r}", at_once, *params)


def _best(results: pd.DataFrame) -> pd.DataFrame:
  """Returns the best trial of each cell; the first in compute come first."""
  done = results[results["state"] == "done"]
  best = done.loc[done.groupby("cell")["heldout_loss"].idxmin()].copy()
  best = best.sort_values("flops")
  lowest = best["heldout_loss"].cummin()
  best["frontier"] = best["heldout_loss"] == lowest
  return best


def _compare(best: pd.DataFrame, workdir: pathlib.Path) -> None:
  """Writes what came of the fine-tuning beside what it began with."""
  tuned = pd.read_csv(workdir / "finetune" / "results.csv")
  tuned = tuned[tuned["state"] == "done"].copy()
  tuned["from"] = tuned["WEIGHTS"].map(lambda path: pathlib.Path(path).name)
  groups = tuned.groupby("from")
  columns = ["point", "VARIANT", "EPOCHS", "PEAK_LR", "parameters", "flops"]
  table = best[[*columns, "heldout_loss", "frontier"]].set_index("point")
  table["finetuned_loss"] = groups["heldout_loss"].mean()
  error = 100.0 * (1.0 - groups["heldout_top1"].mean())
  table["finetuned_error"] = error
  top1 = groups["heldout_top1"]
  table["error_range"] = 100.0 * (top1.max() - top1.min())
  table["seeds"] = groups.size()
  table.to_csv(workdir / "finetuned.csv", float_format="%.6g")
  _draw(table, workdir / "finetuned.png")
  ranks = table[["heldout_loss", "finetuned_error"]].corr(method="spearman")
  print(table.to_string())
  summary = {
    "rank_correlation": float(ranks.iloc[0, 1]),
    "lowest_loss": table["heldout_loss"].idxmin(),
    "best_fine_tuned": table["finetuned_error"].idxmin(),
  }
  print(json.dumps(summary))


def _draw(table: pd.DataFrame, path: pathlib.Path) -> None:
  with picture(str(path), width=10.0, height=4.2, columns=2) as (left, right):
    models = list(dict.fromkeys(table.sort_values("parameters")["VARIANT"]))
    for name, look in looks(models).items():
      rows = table[table["VARIANT"] == name]
      spread = rows["error_range"] / 2.0
      error = rows["finetuned_error"]
      left.errorbar(rows["flops"], error, spread, label=name, **look)
      right.plot(rows["heldout_loss"], error, linestyle="none", **look)
    left.set(xlabel="training FLOPs before fine-tuning")
    right.set(xlabel="held-out loss before fine-tuning (nats)")
    for axes, column in ((left, "flops"), (right, "heldout_loss")):
      axes.set(ylabel="top-1 error after fine-tuning (%)")
      logarithmic(axes, "x", table[column])
      logarithmic(axes, "y", table["finetuned_error"])
    left.legend()


if __name__ == "__main__":
  main()
