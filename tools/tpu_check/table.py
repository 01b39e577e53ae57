"""The table of docs/tpu.md: the paper's networks on the slices that hold them.

A deep network takes a compiler long, and as much memory as a small machine has.
An NFNet-Fk has k + 1 times F0's blocks in every stage, so at a fixed width and
resolution what one chip needs is linear in that multiple, for a fixed part and
for a part of each image:

  y(multiple, images) = (a + b * multiple) + (c + d * multiple) * images

Shallow networks are compiled at few images a chip, and the rest follows, as
long as it fits: near the limit the compiler recomputes on its own. So some rows
are compiled, too, on the smallest slice that holds them and as checks.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nfnets_tf.scaling.compute import TPU_V4_USABLE_BYTES
from tools.tpu_check.slices import SLICES, find_slice

RECORDS = pathlib.Path(__file__).with_name("records")
PROBE_SLICE = find_slice("v4-16")
_GIB = 1 << 30
_LEAST_PROBES = 4  # as many as the formula has coefficients


@dataclasses.dataclass(frozen=True)
class Study:
  """Networks of one width under one recipe.

  Attributes:
    name: of the recipe, in the names of records.
    gin_file: of the recipe.
    bindings: further ones.
    batch_size: of the rows.
    wide: whether the networks are those with a "+".
    rows: multiples of the networks in the table.
    probes: (multiple, images a chip) to compile, in order of importance; the
      first `_LEAST_PROBES` determine the formula, the others check it.
  """

  name: str
  gin_file: str
  bindings: tuple[str, ...]
  batch_size: int
  wide: bool
  rows: tuple[int, ...]
  probes: tuple[tuple[int, int], ...]

  def variant(self, multiple: int) -> str:
    """Returns the name of the network with `multiple` times F0's blocks."""
    return f"F{multiple - 1}{'+' * self.wide}"

  def record_path(self, multiple: int, images: int) -> pathlib.Path:
    """Returns where a probe's record is kept."""
    variant = self.variant(multiple).lower().replace("+", "plus")
    return RECORDS / f"{self.name}-{variant}-{images}.json"

  def flags(self, multiple: int, images: int) -> list[str]:
    """Returns the flags of a probe's run."""
    bindings = (
      f"VARIANT = '{self.variant(multiple)}'",
      f"BATCH_SIZE = {images * PROBE_SLICE.chips}",
      *self.bindings,
    )
    return [
      f"--gin_file={self.gin_file}",
      *(f"--gin_param={binding}" for binding in bindings),
    ]

  def read(self) -> dict[tuple[int, int], dict]:
    """Returns {(multiple, images a chip): record} of what was compiled."""
    paths = {probe: self.record_path(*probe) for probe in self.probes}
    return {
      probe: json.loads(path.read_text())
      for probe, path in paths.items()
      if path.exists()
    }


_PROBES = ((1, 32), (2, 32), (1, 64), (2, 64))
_PRETRAIN = ("PEAK_LR = 1.0",)  # no rate is tuned for networks in between
_RECOMPUTE = "nfnet.NFNet.recompute = True"


def _pretraining(wide: bool, recompute: bool, checks=()) -> Study:
  return Study(
    name=f"pretrain{'-wide' * wide}{'-recompute' * recompute}",
    gin_file="gin/f0_jft.gin",
    bindings=(*_PRETRAIN, *[_RECOMPUTE] * recompute),
    batch_size=4096,
    wide=wide,
    rows=(4, 8) if wide else (1, 2, 4, 8),
    probes=(*_PROBES, *checks),
  )


STUDIES = (
  _pretraining(
    wide=False,
    recompute=False,
    checks=((1, 512), (1, 1024), (2, 512), (4, 256)),
  ),
  _pretraining(wide=True, recompute=False, checks=((8, 64), (4, 256))),
  _pretraining(wide=False, recompute=True, checks=((1, 1024),)),
  _pretraining(wide=True, recompute=True),
  Study(
    name="finetune-sam",
    gin_file="gin/finetune_imagenet.gin",
    bindings=(),
    batch_size=2048,
    wide=True,
    rows=(8,),
    probes=((1, 8), (2, 8), (1, 16), (2, 16)),
  ),
)
# Of what a program needs; each is linear in blocks and images.
_QUANTITIES = (
  "peak_bytes",
  "argument_bytes",
  "temp_bytes",
  "flops",
  "analytic_flops",
  "bytes_accessed",
  "all_reduce_bytes",
)


class Row(NamedTuple):
  """A network on the smallest slice that holds its step.

  Attributes:
    study: that it belongs to.
    variant: of the network.
    part: name of the slice; None if not even the largest one does.
    images: a chip.
    found: {column of the package's table: number}.
    compiled: whether that was compiled, rather than predicted.
    larger: bytes that a chip of half that slice would need, if the compiler
      recomputed nothing; None if there is no smaller one, or it does not say.
  """

  study: str
  variant: str
  part: str | None
  images: int
  found: Mapping[str, float]
  compiled: bool
  larger: float | None


def missing(studies: Sequence[Study] = STUDIES):
  """Yields (study, probe) of what has no record yet.

  What determines the formulas comes before what checks them.
  """
  for part in (slice(_LEAST_PROBES), slice(_LEAST_PROBES, None)):
    for study in studies:
      for probe in study.probes[part]:
        if not study.record_path(*probe).exists():
          yield study, probe


def program_row(record: Mapping) -> dict[str, object]:
  """Returns a record as a row of the package's table, "" for the unknown."""
  memory, versions, flops = (
    record["memory"],
    record["versions"],
    record["flops"],
  )
  row = {
    **record["key"],
    "slice": record["slice"]["name"],
    "batch_per_chip": record["run"]["batch_per_replica"],
    "peak_bytes": memory.get("peak_bytes", memory.get("needed_bytes")),
    "fits": int(record["fits"]),
    "argument_bytes": memory.get("arguments_bytes"),
    "temp_bytes": memory.get("temporaries_bytes"),
    "flops": flops.get("compiled"),
    "analytic_flops": flops["analytic"],
    "bytes_accessed": record.get("bytes_accessed"),
    "all_reduces": record["all_reduces"].get("compiled", {}).get("count"),
    "all_reduce_bytes": record["all_reduces"].get("compiled", {}).get("bytes"),
    "compile_seconds": record["compile"]["seconds"],
    "source": "compiled",
    "compiler": f"libtpu {versions['libtpu']}",
    "tensorflow": versions["tensorflow"],
    "date": record["date"],
  }
  return {k: "" if value is None else value for k, value in row.items()}


def rows(study: Study) -> list[Row]:
  """Returns the study's rows; none before its formula is determined."""
  compiled = {
    probe: program_row(record) for probe, record in study.read().items()
  }
  known = _determining(study, compiled)
  if known is None:
    return []

  def find(multiple: int, images: int) -> Mapping[str, float]:
    if (multiple, images) in compiled:
      return compiled[multiple, images]
    values = {
      name: predict(
        {probe: row[name] for probe, row in known.items()}, multiple, images
      )
      for name in _QUANTITIES
    }
    return {**values, "fits": values["peak_bytes"] <= TPU_V4_USABLE_BYTES}

  made = []
  for multiple in study.rows:
    larger = None
    for part in SLICES.values():
      images = study.batch_size // part.chips
      found = find(multiple, images)
      if found["fits"]:
        break
      larger = found["peak_bytes"] or None
    made.append(
      Row(
        study=study.name,
        variant=study.variant(multiple),
        part=part.name if found["fits"] else None,
        images=images,
        found=found,
        compiled=(multiple, images) in compiled,
        larger=larger,
      )
    )
  return made


def _determining(study: Study, compiled: Mapping) -> dict | None:
  """Returns what was compiled of the probes that determine the formula.

  Those are so small that they fit.

  Returns:
    {probe: the value in `compiled`}; None if one is missing.
  """
  probes = study.probes[:_LEAST_PROBES]
  if not compiled.keys() >= set(probes):
    return None
  return {probe: compiled[probe] for probe in probes}


def check(study: Study) -> dict[str, tuple[float, float]]:
  """Returns what the formula says of the probes that check it.

  Not of those that by the formula do not fit: there the compiler recomputes
  what it has to, if it can, and the formula is of programs that need not.

  Returns:
    {network and images a chip: (bytes a chip as compiled, as predicted from the
    probes that determine the formula)}.
  """
  memory = {
    probe: program_row(record)["peak_bytes"]
    for probe, record in study.read().items()
    if record["fits"]
  }
  known = _determining(study, memory)
  if known is None:
    return {}
  predicted = {
    probe: predict(known, *probe)
    for probe in study.probes[_LEAST_PROBES:]
    if probe in memory
  }
  return {
    f"{study.name} {study.variant(multiple)} at {images:,}": (
      memory[multiple, images],
      size,
    )
    for (multiple, images), size in predicted.items()
    if size <= TPU_V4_USABLE_BYTES
  }


def program_rows(study: Study) -> list[dict[str, object]]:
  """Returns what the package's table has of a study."""
  records = list(study.read().values())
  made = [program_row(record) for record in records]
  for row in rows(study):
    if row.part is None or row.compiled:
      continue
    made.append(
      {
        **made[0],
        **{name: round(value) for name, value in row.found.items()},
        "network": row.variant,
        "slice": row.part,
        "batch_per_chip": row.images,
        "fits": 1,
        "all_reduces": "",
        "compile_seconds": "",
        "source": "extrapolated",
        "date": max(record["date"] for record in records),
      }
    )
  return made


def write_programs(path: pathlib.Path, columns: Sequence[str]) -> int:
  """Replaces the rows of all studies in the package's table.

  Args:
    path: of the table; other programs stay that were compiled.
    columns: of the table.

  Returns:
    The number of rows.
  """
  with open(path, newline="") as file:
    read = csv.DictReader(file)
    kept = [row for row in read if row["source"] == "compiled"]
  made = [row for study in STUDIES for row in program_rows(study)]
  made = [{k: str(row[k]) for k in columns} for row in made]
  key = columns[: columns.index("batch_per_chip") + 1]
  by_key = {tuple(row[k] for k in key): row for row in (*kept, *made)}
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(by_key[k] for k in sorted(by_key))
  return len(by_key)


def predict(
  known: Mapping[tuple[int, int], float], multiple: int, images: int
) -> float:
  """Returns what the formula gives through four {(multiple, images): value}."""

  def terms(multiple, images):
    return [1, multiple, images, multiple * images]

  matrix = [terms(*probe) for probe in known]
  solution = np.linalg.solve(matrix, list(known.values()))
  return float(np.dot(terms(multiple, images), solution))


def format_rows(made: Sequence[Row]) -> str:
  """Returns the rows as a table of Markdown."""
  lines = [
    "| recipe | network | smallest slice | images a chip | GiB a chip | on half"
    " of it | FLOPs over counted | GB of traffic a step | |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for row in made:
    larger = "" if row.larger is None else f"{row.larger / _GIB:.1f}"
    found = row.found
    lines.append(
      f"| {row.study} | {row.variant} | {row.part or 'none'} |"
      f" {row.images:,} | {found['peak_bytes'] / _GIB:.1f} | {larger} |"
      f" {found['flops'] / found['analytic_flops']:.2f} |"
      f" {found['bytes_accessed'] / 1e9:,.0f} |"
      f" {'compiled' if row.compiled else 'extrapolated'} |"
    )
  return "\n".join(lines)


def format_checks(found: Mapping[str, tuple[float, float]]) -> str:
  """Returns the checks of all studies as lines."""
  return "\n".join(
    f"{name} a chip: {compiled / _GIB:.2f} GiB compiled, {predicted / _GIB:.2f}"
    f" predicted ({predicted / compiled - 1:+.1%})"
    for name, (compiled, predicted) in found.items()
  )
