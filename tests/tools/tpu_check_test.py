"""Compiling for a TPU without one: what needs no compiler, and what it shows.

NFNETS_TF_TPU_CHECK names the folder of the compiler's environment, which
`.ci/run` makes where it can; docs/tpu.md.
"""

import csv
import dataclasses
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.compute import PROGRAM_COLUMNS, TPU_V4_USABLE_BYTES
from tools.tpu_check import hlo, records, slices, table

RECORDS = table.RECORDS
ENVIRONMENT = os.environ.get("NFNETS_TF_TPU_CHECK")
CAN_LOWER = tf.__version__.startswith("2.20.")
TINY = ("gin/quickstart.gin", "tests/support/tiny.gin")

needs_lowering = pytest.mark.skipif(
  not CAN_LOWER, reason="only TensorFlow 2.20 lowers a step for a TPU"
)

PROGRAM = """\
HloModule jit_step, entry_computation_layout={...}

%fused_computation.1 (p.1: bf16[32,56,56,256]) -> bf16[32,56,56,256] {
  %p.1 = bf16[32,56,56,256]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  ROOT %copy.9 = bf16[32,56,56,256]{0,3,2,1:T(8,128)(2,1)} copy(%p.1)
}

%all-reduce-scatter.1 (p.2: f32[32,32]) -> f32[16,32] {
  %p.2 = f32[32,32]{1,0} parameter(0)
  %all-reduce.2 = f32[32,32]{1,0} all-reduce(%p.2), replica_groups={{0,1},{2,3}}
  %all-reduce.3 = f32[32,32]{1,0} all-reduce(%p.2), replica_groups={{0,2},{1,3}}
  ROOT %slice.1 = f32[16,32]{1,0} slice(%all-reduce.3), slice={[0:16], [0:32]}
}

ENTRY %main.1 (a: f32[3,3,16,32], b: bf16[32,56,56,256]) -> (f32[], bf16[2]) {
  %a = f32[3,3,16,32]{3,2,1,0:T(8,128)} parameter(0)
  %b = bf16[32,56,56,256]{3,0,2,1:T(8,128)(2,1)} parameter(1)
  %convert.1 = bf16[3,3,16,32]{3,2,1,0} convert(%a), metadata={op_type="Cast"}
  %convolution.1 = bf16[32,56,56,32]{3,0,2,1} convolution(%b, %convert.1)
  %dot.1 = f32[32,32]{1,0} dot(%a, %a), lhs_contracting_dims={1}
  %all-reduce.1 = (f32[16]{0}, f32[3,3,16,32]{3,2,1,0}) all-reduce(%a)
  %fusion.2 = f32[16,32]{1,0} fusion(%dot.1), calls=%all-reduce-scatter.1
  %copy.1 = bf16[32,56,56,256]{0,3,2,1} copy(%b)
  %copy.2 = f32[16]{0} copy(%a)
  ROOT %fusion.1 = bf16[4]{0} fusion(%b), calls=%fused_computation.1
}
"""


def test_slices_have_half_as_many_chips_as_their_names_have_cores():
  for name, part in slices.SLICES.items():
    assert 2 * part.chips == int(name.partition("-")[2])
    assert list(part.topology) == sorted(part.topology) or part.chips == 4
  assert not slices.find_slice("v4-64").is_torus
  assert slices.find_slice("v4-128").is_torus
  with pytest.raises(UserError, match="v4-7 does not exist; expected .*v4-8"):
    slices.find_slice("v4-7")


def test_program_is_summed_up_by_what_it_computes_and_moves():
  activation = 32 * 56 * 56 * 256 * 2
  summary = hlo.summarize(PROGRAM)
  assert summary["all_reduces"] == {
    "count": 2,
    "bytes": 4 * (16 + 3 * 3 * 16 * 32 + 32 * 32),
  }
  assert summary["products"] == {"bf16": 1, "f32": 1}
  # Neither a small copy nor one within a fusion counts.
  assert summary["moves"] == {"copy": {"count": 1, "bytes": activation}}


def test_prediction_recovers_what_is_linear_in_blocks_and_images():
  def needed(multiple, images):
    return 0.5 + 0.3 * multiple + images * (0.01 + 0.04 * multiple)

  known = {p: needed(*p) for p in itertools.product((1, 2), (16, 64))}
  for point in ((1, 16), (4, 128), (8, 8)):
    assert math.isclose(table.predict(known, *point), needed(*point))


@pytest.fixture
def study(tmp_path, monkeypatch):
  """F0 and F3 at batch 4096, of which F0 was compiled at up to 1,024 images."""
  monkeypatch.setattr(table, "RECORDS", tmp_path)
  probes = ((1, 32), (2, 32), (1, 64), (2, 64), (1, 512), (1, 1024))
  study = dataclasses.replace(table.STUDIES[0], rows=(1, 4), probes=probes)
  record = json.loads((RECORDS / "pretrain-f0-32.json").read_text())
  # The compiler is said to need a tenth more than the formula at 512 images,
  # and to recompute at 1,024, where by the formula they do not fit.
  factors = {512: 1.1, 1024: 0.7}
  for multiple, images in probes:
    exact = (1 + multiple + images * (0.01 + 0.03 * multiple)) * 1e9
    record["memory"]["peak_bytes"] = exact * factors.get(images, 1)
    record["run"]["batch_per_replica"] = images
    record["key"]["network"] = study.variant(multiple)
    records.write(record, study.record_path(multiple, images))
  return study


def test_rows_take_the_smallest_slice_that_holds_them(study):
  f0, f3 = table.rows(study)
  assert (f0.part, f0.images, f0.compiled) == ("v4-8", 1024, True)
  assert math.isclose(f0.found["peak_bytes"], 0.7 * 42.96e9)
  assert f0.larger is None
  assert (f3.part, f3.images, f3.compiled) == ("v4-64", 128, False)
  assert math.isclose(f3.found["peak_bytes"], 21.64e9)
  assert math.isclose(f3.larger, 38.28e9)
  lines = table.format_rows([f0, f3]).splitlines()
  assert lines[2].endswith("| compiled |")
  assert lines[3].startswith("| pretrain | F3 | v4-64 | 128 | ")


def test_rows_go_by_what_the_compiler_refuses(study):
  path = study.record_path(1, 1024)
  record = json.loads(path.read_text())
  record.update(
    fits=False, memory={"needed_bytes": None}, flops={"analytic": 1}
  )
  records.write(record, path)
  f0, _ = table.rows(study)
  assert (f0.part, f0.images, f0.compiled) == ("v4-16", 512, True)
  assert f0.larger is None  # the message did not say
  assert list(table.check(study)) == ["pretrain F0 at 512"]


def test_probes_check_the_formula_where_they_fit_by_it(study):
  ((name, (compiled, predicted)),) = table.check(study).items()
  assert name == "pretrain F0 at 512"
  assert math.isclose(compiled, 1.1 * predicted)
  text = table.format_checks({name: (compiled, predicted)})
  assert text.endswith("23.03 GiB compiled, 20.94 predicted (-9.1%)")


def test_compiled_programs_are_not_replaced_by_extrapolated_ones(study):
  found = {
    (row["network"], row["batch_per_chip"]): row["source"]
    for row in table.program_rows(study)
  }
  assert found["F0", 1024] == "compiled"
  assert found["F3", 128] == "extrapolated"


def test_written_table_keeps_what_was_compiled(study, tmp_path, monkeypatch):
  monkeypatch.setattr(table, "STUDIES", (study,))
  path = tmp_path / "programs.csv"
  rows = table.program_rows(study)[:1]
  other = {**rows[0], "network": "F9"}
  guessed = {**other, "batch_per_chip": 7, "source": "extrapolated"}
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, PROGRAM_COLUMNS)
    writer.writeheader()
    writer.writerows([other, guessed])
  # Six probes, F3's row, and the other one.
  assert table.write_programs(path, PROGRAM_COLUMNS) == 8
  with open(path, newline="") as file:
    written = list(csv.DictReader(file))
  assert [row["network"] for row in written].count("F9") == 1
  assert {row["source"] for row in written} == {"compiled", "extrapolated"}


def test_a_study_of_too_few_probes_has_no_rows(study):
  study.record_path(2, 64).unlink()
  assert table.rows(study) == []
  assert table.check(study) == {}
  assert list(table.missing([study])) == [(study, (2, 64))]


def make_record(**changes):
  run = {
    "variant": "F0",
    "image_size": 224,
    "policy": "mixed_bfloat16",
    "batch_per_replica": 1024,
    "micro_batches": 1,
  }
  return {
    "step": "train",
    "run": run,
    "slice": {"name": "v4-8", "chips": 4, "topology": "2x2x1"},
    "fits": False,
    "memory": {
      "usable_bytes": TPU_V4_USABLE_BYTES,
      "needed_bytes": 61 << 30,
    },
    "compile": {"seconds": 100.0, "host_memory_bytes": 6 << 30},
    "date": "2026-11-26",
    "versions": {"libtpu": "0.0.42.1"},
    **changes,
  }


def test_record_of_too_large_a_step_names_what_it_needs_and_the_binding():
  text = dict(records.describe(make_record()))["memory"]
  assert "needs 61.00 GiB, of 30.75 GiB usable" in text
  assert "classifier.Classifier.micro_batches = 2" in text


@pytest.mark.skipif(CAN_LOWER, reason="this TensorFlow lowers a step")
def test_other_tensorflow_is_refused_in_one_sentence():
  from tools.tpu_check import pretended_tpu

  with pytest.raises(UserError, match="expected TensorFlow 2.20: install"):
    with pretended_tpu.pretended_tpu(2):
      pass


@needs_lowering
@pytest.mark.parametrize("step", ["train", "eval"])
def test_step_is_traced_for_every_replica(step):
  from tools.tpu_check import programs

  job = programs.load_job(TINY, ["BATCH_SIZE = 64"])
  facts = programs.lower(job, replicas=8, step=step).facts
  labels = [each["label"].partition("/")[0] for each in facts["captured"]]
  weights, metrics = labels.count("weight"), labels.count("metric")
  # Each gradient is summed once, and on TPUs each metric; then the counts of
  # examples, and the guard's counter, which the first replica broadcasts.
  expected = {"train": weights + metrics + 2, "eval": metrics}[step]
  assert weights == 8 and metrics >= 6
  assert facts["all_reduces"]["count"] == expected
  assert facts["inputs"][0] == {"shape": [8, 32, 32, 3], "dtype": "uint8"}


@needs_lowering
@pytest.mark.skipif(
  ENVIRONMENT is None,
  reason="NFNETS_TF_TPU_CHECK does not name the compiler's environment",
)
def test_program_of_two_replicas_computes_the_step_of_one_device():
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [
      *(sys.executable, "-m", "tools.tpu_check", "verify"),
      f"--environment={ENVIRONMENT}",
    ],
    cwd=root,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(root)},
  )
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  assert done.stdout.count("ok ") == 4
