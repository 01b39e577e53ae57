"""Compares runs of `launch/train.py` in a table and a figure.

  python -m benchmarks.compare_runs --output=docs/images/x.png \
      --runs="plain=runs/plain_*" --runs="SAM=runs/sam_*:ema"

Each group is NAME=PATTERN of work directories, with ":ema" for the averaged
weights. Top-1, held out and in training, is drawn against the number of images
computed, which SAM's two passes count twice. The last line is a JSON object
with the mean and the range of every group's final held-out top-1.
"""

import glob
import json
import os
import pathlib
import re
import sys

from absl import flags
from matplotlib.figure import Figure

from benchmarks import entry

_RUNS = flags.DEFINE_multi_string("runs", [], "NAME=PATTERN, see above.")
_OUTPUT = flags.DEFINE_string("output", None, "The picture, a PNG.")
_TITLE = flags.DEFINE_string("title", "", "Title of the picture.")


def main() -> None:
  """Draws the groups and prints a line for each."""
  figure = Figure(figsize=(7, 4.2), layout="constrained")
  axes = figure.subplots()
  table = {}
  for number, text in enumerate(_RUNS.value):
    name, pattern = text.split("=", 1)
    pattern, _, weights = pattern.partition(":")
    key = "ema_heldout_top1" if weights == "ema" else "heldout_top1"
    last = []
    folders = sorted(glob.glob(f"{pattern}/result.json"))
    if not folders:
      sys.exit(f"no finished run at {pattern!r}: result.json is its last file.")
    color = f"C{number}"
    for folder in map(os.path.dirname, folders):
      points = _points(pathlib.Path(folder), key)
      label = None if last else name
      axes.plot(*zip(*points), "o", color=color, label=label, ms=4)
      if weights != "ema":
        training = _points(pathlib.Path(folder), "top1")
        axes.plot(*zip(*training), color=color, alpha=0.4, lw=1)
      last.append(points[-1][1])
    mean = sum(last) / len(last)
    table[name] = [round(v, 2) for v in (mean, min(last), max(last))]
    extent = f"{min(last):.2f} to {max(last):.2f}, {len(last)} runs"
    print(f"{name:>20} {mean:6.2f} % ({extent})")
  axes.set(
    xlabel="images computed (thousands; twice each in two passes)",
    ylabel="top-1 (%): points held out, lines training",
    title=_TITLE.value,
  )
  axes.grid(alpha=0.3)
  axes.legend()
  if _OUTPUT.value:
    figure.savefig(_OUTPUT.value, dpi=110)
  print(json.dumps(table))


def _points(folder: pathlib.Path, key: str) -> list[tuple[float, float]]:
  """Returns (thousands of images computed, top-1 in %) of a run."""
  config = (folder / "config.gin").read_text()
  batch = int(re.search(r"^BATCH_SIZE = (\d+)", config, re.M)[1])
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  active = [r["sam_active"] for r in records if "sam_active" in r]
  part = re.search(r"^sam.SAM.ascent_fraction = ([\d.]+)", config, re.M)
  passes = 1 + float(part[1]) * sum(active) / len(active) if active else 1
  return [
    (record["step"] * batch * passes / 1e3, 100 * record[key])
    for record in records
    if key in record
  ]


if __name__ == "__main__":
  entry.run(main)
