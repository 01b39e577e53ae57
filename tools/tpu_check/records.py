"""Records: what the compiler found out about a step on a slice, as JSON."""

from __future__ import annotations

import datetime
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from nfnets_tf.scaling.compute import TPU_V4_USABLE_BYTES
from tools.tpu_check import environment
from tools.tpu_check.slices import Slice

_FORMAT = 1


def make(
  flags: Sequence[str],
  part: Slice,
  *,
  step: str,
  folder: pathlib.Path,
  text: pathlib.Path | None = None,
) -> dict:
  """Lowers a run's step in a process of its own, and compiles it.

  Args:
    flags: --gin_file and --gin_param flags of the run.
    part: the slice.
    step: "train" or "eval".
    folder: of the compiler's environment.
    text: where the optimized program's text is kept, if anywhere.

  Raises:
    UserError: if the environment is missing or the compiler fails.
    SystemExit: with the code of the process that could not lower the step.
  """
  environment.check(folder)
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary, "program")
    # Not in this process: its memory is freed before the compiler needs it.
    done = subprocess.run(
      [
        *(sys.executable, "-m", "tools.tpu_check", "lower", *flags),
        *(f"--replicas={part.chips}", f"--step={step}", f"--output={path}"),
      ]
    )
    if done.returncode:
      raise SystemExit(done.returncode)
    facts = json.loads(path.with_suffix(".json").read_text())
    request = {
      "program": str(path.with_suffix(".stablehlo")),
      "topology": part.topology,
      "torus": part.is_torus,
      "text": text and str(text),
    }
    found = environment.run_task(folder, "compile", request)
  return _join(facts, found, part)


def write(record: dict, path: pathlib.Path) -> None:
  """Writes a record, and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"{json.dumps(record, indent=1)}\n")


def _join(facts: dict, found: dict, part: Slice) -> dict:
  """Returns the record of a program's facts and the compiler's results."""
  memory = found["memory"]
  state = [each["bytes"] for each in facts["captured"]]
  record = {
    "format": _FORMAT,
    "date": datetime.date.today().isoformat(),
    "step": facts["step"],
    "run": facts["run"],
    "key": facts["key"],
    "slice": {
      "name": part.name,
      "topology": "x".join(map(str, part.topology)),
      "chips": part.chips,
    },
    "fits": found["fits"],
    "memory": {"usable_bytes": TPU_V4_USABLE_BYTES, **memory},
    "state_bytes": sum(state),
    "flops": {"analytic": facts["flops_per_replica"]},
    "all_reduces": {"traced": facts["all_reduces"]},
    "graph_operations": facts["graph_operations"],
    "seconds": facts["seconds"],
    "compile": found["compile"],
    "versions": {**facts["versions"], **found["versions"]},
  }
  if found["fits"]:
    optimized = dict(found["optimized"])
    record["flops"]["compiled"] = found["flops"]
    record["bytes_accessed"] = found["bytes_accessed"]
    record["all_reduces"]["compiled"] = optimized.pop("all_reduces")
    record["optimized"] = optimized
  else:
    record["message"] = found["message"]
  return record


def describe(record: dict) -> list[tuple[str, str]]:
  """Returns (title, text) lines about a record."""
  run, part, memory = record["run"], record["slice"], record["memory"]
  gib = 1 << 30
  usable = f"{memory['usable_bytes'] / gib:.2f} GiB usable"
  lines = [
    (
      "step",
      f"{record['step']} of {run['variant']}, {run['image_size']} px,"
      f" {run['policy']}, {run['batch_per_replica']:,} images a chip",
    ),
    ("slice", f"{part['name']}, {part['chips']} chips ({part['topology']})"),
  ]
  if record["fits"]:
    lines += [
      ("memory", f"{memory['peak_bytes'] / gib:.2f} GiB a chip, of {usable}"),
      *_describe_work(record),
    ]
  else:
    needed = memory.get("needed_bytes")
    amount = f"needs {needed / gib:.2f} GiB" if needed else "needs more"
    lines += [("memory", f"does not fit: {amount}, of {usable}; {_mend(run)}")]
  cost = record["compile"]
  versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
  return [
    *lines,
    (
      "compiled in",
      f"{cost['seconds']:,.0f} s, {cost['host_memory_bytes'] / gib:.1f} GiB of"
      f" host memory, on {record['date']}",
    ),
    ("versions", versions),
  ]


def _describe_work(record: dict) -> list[tuple[str, str]]:
  flops, reduces = record["flops"], record["all_reduces"]
  traced, compiled = reduces["traced"], reduces["compiled"]
  products = record["optimized"]["products"]
  return [
    (
      "FLOPs",
      f"{flops['compiled']:.4g} a chip and step,"
      f" {flops['compiled'] / flops['analytic']:.1%} of those counted",
    ),
    ("memory traffic", f"{record['bytes_accessed'] / 1e9:,.1f} GB"),
    (
      "all-reduces",
      f"{traced['count']} traced, {compiled['count']} after combining,"
      f" {compiled['bytes'] / 1e6:,.1f} MB",
    ),
    ("products", ", ".join(f"{n} of {kind}" for kind, n in products.items())),
  ]


def _mend(run: dict) -> str:
  """Returns the binding that makes a step need less memory."""
  parts = 2 * run["micro_batches"]
  if run["batch_per_replica"] % parts:
    return "take a larger slice, or lower BATCH_SIZE"
  binding = f"classifier.Classifier.micro_batches = {parts}"
  return f"take a larger slice, or bind {binding}"
