"""What one of the two TensorFlow stacks computes and writes, the other reads.

NFNETS_TF_OTHER_PYTHON names the interpreter of an environment with the other
stack; `.ci/run` sets it.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
OTHER = os.environ.get("NFNETS_TF_OTHER_PYTHON")
PYTHONS = {"this": sys.executable, "other": OTHER}
# Logits are of the order of 1.
TOLERANCE = 1e-6

pytestmark = pytest.mark.skipif(
  OTHER is None,
  reason="NFNETS_TF_OTHER_PYTHON does not name an interpreter with the other"
  " TensorFlow",
)


def run(stack, *arguments):
  done = subprocess.run(
    [PYTHONS[stack], *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def launch(stack, *arguments):
  return run(
    stack,
    "launch/train.py",
    "--gin_file=gin/quickstart.gin",
    "--gin_file=tests/support/tiny.gin",
    *arguments,
  )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{stack: folder that it wrote}."""
  folders = {stack: tmp_path_factory.mktemp(stack) for stack in PYTHONS}
  for stack, folder in folders.items():
    run(stack, "-m", "tests.support.stack_worker", "write", folder)
  return folders


def load(path):
  with np.load(path) as file:
    return dict(file)


def test_stacks_differ():
  command = "import tensorflow as tf; print(tf.__version__)"
  assert run("this", "-c", command) != run("other", "-c", command)


def test_logits_and_five_steps_agree(folders):
  ours, others = (load(f / "results.npz") for f in folders.values())
  assert set(ours) == set(others)
  for name in ours:
    np.testing.assert_allclose(
      ours[name], others[name], rtol=0, atol=TOLERANCE, err_msg=name
    )


@pytest.mark.parametrize("reader, writer", [PYTHONS, [*PYTHONS][::-1]])
def test_files_of_the_other_stack_are_read(folders, reader, writer, tmp_path):
  written = load(folders[writer] / "results.npz")
  path = tmp_path / "read.npz"
  worker = "tests.support.stack_worker"
  run(reader, "-m", worker, "read", folders[writer], path)
  for name, value in load(path).items():
    # A SavedModel has the averaged weights.
    if name.endswith(("folded", "averaged")):
      expected = written["averaged"]
    elif name.endswith("continued"):
      expected = written["continued"]
    else:
      expected = written["logits"]
    np.testing.assert_allclose(
      value, expected, rtol=0, atol=10 * TOLERANCE, err_msg=name
    )


@pytest.mark.parametrize("reader, writer", [PYTHONS, [*PYTHONS][::-1]])
def test_run_is_resumed_by_the_other_stack(reader, writer, tmp_path):
  alone, moved = (f"--workdir={tmp_path / name}" for name in ("alone", "moved"))
  more = (
    "--gin_param=EPOCHS = 2",
    "--gin_param=config.Launch.allow_changes = ['EPOCHS']",
  )
  launch(writer, "--gin_param=EPOCHS = 1", moved)
  launch(reader, *more, moved)
  launch(writer, "--gin_param=EPOCHS = 1", alone)
  launch(writer, *more, alone)
  last = []
  for name in ("alone", "moved"):
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    last.append(json.loads(lines[-1]))
  assert last[0]["step"] == last[1]["step"] > 40
  for key in ("heldout_loss", "ema_heldout_loss"):
    assert last[0][key] == pytest.approx(last[1][key], abs=1e-5)
