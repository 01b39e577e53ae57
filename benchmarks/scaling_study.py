"""The scaling study of docs/scaling_study.md, from a folder of CIFAR-10.

  python -m benchmarks.scaling_study --cifar10=FOLDER --workdir=WORKDIR

FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg. Six classes are trained on
by gin/sweeps/cifar10.gin, the law is fitted, and the network of every grid
point's best rate is fine-tuned on the other four, with few images, from three
seeds. An interrupted study resumes. WORKDIR gets pretrain/ and finetune/ (the
sweeps), law/ (laws.json and its figures), finetuned.csv and finetuned.png.
"""

import json
import os
import pathlib
import subprocess
import sys

import pandas as pd
from absl import flags

from benchmarks import entry
from nfnets_tf.scaling.plots import (
  model_styles,
  new_figure,
  save_png,
  set_log_axis,
)

_CIFAR10 = flags.DEFINE_string("cifar10", None, "The folder.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "See above.", required=True)
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Points that run together.")

_ROOT = pathlib.Path(__file__).parents[1]
_PRETRAINED_CLASSES = 6
_IMAGES_PER_CLASS = 500  # to fine-tune on the other classes


def main() -> None:
  """Runs the study, or resumes it."""
  workdir = pathlib.Path(_WORKDIR.value).resolve()
  source = pathlib.Path(_CIFAR10.value).resolve()
  names = sorted(path.name for path in (source / "train").iterdir())
  pretrain = names[:_PRETRAINED_CLASSES]
  finetune = names[_PRETRAINED_CLASSES:]
  _link(source, workdir / "data" / "pretrain", pretrain, None)
  _link(source, workdir / "data" / "finetune", finetune, _IMAGES_PER_CLASS)
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
    workdir / "data" / "finetune",
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
  """Returns the best trial of each grid point, cheapest first."""
  done = results[results["state"] == "done"]
  best = done.loc[done.groupby("grid_point")["heldout_loss"].idxmin()].copy()
  best = best.sort_values("flops")
  lowest = best["heldout_loss"].cummin()
  best["frontier"] = best["heldout_loss"] == lowest
  return best


def _compare(best: pd.DataFrame, workdir: pathlib.Path) -> None:
  """Writes the results of fine-tuning next to those of pre-training."""
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
  _plot(table, workdir / "finetuned.png")
  ranks = table[["heldout_loss", "finetuned_error"]].corr(method="spearman")
  print(table.to_string())
  summary = {
    "rank_correlation": float(ranks.iloc[0, 1]),
    "lowest_loss": table["heldout_loss"].idxmin(),
    "best_fine_tuned": table["finetuned_error"].idxmin(),
  }
  print(json.dumps(summary))


def _plot(table: pd.DataFrame, path: pathlib.Path) -> None:
  figure, (left, right) = new_figure(10.0, 4.2, columns=2)
  models = table.sort_values("parameters")["VARIANT"].unique()
  for name, style in model_styles(models).items():
    rows = table[table["VARIANT"] == name]
    spread = rows["error_range"] / 2.0
    error = rows["finetuned_error"]
    left.errorbar(rows["flops"], error, spread, label=name, **style)
    right.plot(rows["heldout_loss"], error, linestyle="none", **style)
  left.set(xlabel="training FLOPs before fine-tuning")
  right.set(xlabel="held-out loss before fine-tuning (nats)")
  for axes, column in ((left, "flops"), (right, "heldout_loss")):
    axes.set(ylabel="top-1 error after fine-tuning (%)")
    set_log_axis(axes, "x", table[column])
    set_log_axis(axes, "y", table["finetuned_error"])
  left.legend()
  save_png(figure, str(path))


if __name__ == "__main__":
  entry.run(main)
