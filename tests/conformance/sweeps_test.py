"""Sweeps by the real entry point, in processes that share a folder."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nfnets_tf.data import sources
from tests.config.sweeping_test import FILE

ROOT = pathlib.Path(__file__).parents[2]
TRAINED = """\
from __gin__ import dynamic_registration

from nfnets_tf import config
from nfnets_tf.scaling import engines
from nfnets_tf.scaling import sweep
from nfnets_tf.train import classifier

include 'gin/quickstart.gin'
include 'gin/overlays/smoke.gin'
include 'gin/sweeps/base.gin'

DATA_DIR = {data!r}
EPOCHS = 1
classifier.Classifier.ema_decay = None
config.grid.SEED = (0, 1, 2)
sweep.Sweep.poll_seconds = 0.5
engines.Ray:
  address = None
  at_once = 2
"""
FAKED = """\
from __gin__ import dynamic_registration

from nfnets_tf import config
from nfnets_tf.scaling import sweep
from tests.support import small_job

include 'gin/sweeps/base.gin'
"""
NAMES = ["SEED=0", "SEED=1", "SEED=2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """A gin file of three points, and its data."""
  folder = tmp_path_factory.mktemp("sweep")
  digits = str(folder / "digits")
  sources.Digits(directory=digits, image_size=32)()
  path = folder / "sweep.gin"
  path.write_text(TRAINED.format(data=digits))
  return str(path)


def start(file, workdir, *arguments):
  return subprocess.Popen(
    [
      sys.executable,
      "launch/train.py",
      f"--gin_file={file}",
      f"--workdir={workdir}",
      *arguments,
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},  # for the job that is faked
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(file, workdir, *arguments, code=0):
  process = start(file, workdir, *arguments)
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, err
  return out, err


def records(workdir):
  return {
    path.stem: json.loads(path.read_text())
    for path in pathlib.Path(workdir).glob("records/*.json")
  }


def weights(workdir):
  return {
    name: record["result"]["weights_sha256"]
    for name, record in records(workdir).items()
  }


@pytest.fixture(scope="module")
def shared(file, tmp_path_factory):
  """A sweep by two processes: (its folder, what each of them said)."""
  workdir = tmp_path_factory.mktemp("shared")
  processes = [start(file, workdir) for _ in range(2)]
  said = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  return workdir, said


def test_two_processes_do_each_point_once(shared):
  workdir, said = shared
  assert {r["state"] for r in records(workdir).values()} == {"done"}
  assert sorted(records(workdir)) == NAMES
  shares = [err.count(": heldout_loss ") for _, err in said]
  assert sum(shares) == 3 and min(shares) >= 1
  for name in NAMES:
    log = (workdir / "logs" / f"{name}.log").read_text()
    assert log.count("Training NFNet femto") == 1, name
  assert len(set(weights(workdir).values())) == 3
  assert "3 done" in said[0][0] and "3 done" in said[1][0]


def test_the_table_holds_costs_and_results(shared):
  workdir, _ = shared
  lines = (workdir / "results.csv").read_text().splitlines()
  columns = lines[0].split(",")
  assert len(lines) == 4
  assert {"flops", "parameters", "heldout_loss", "SEED"} <= set(columns)
  plan = (workdir / "plan.csv").read_text().splitlines()
  assert len(plan) == 4 and "tpu_v4_core_hours" in plan[0]
  assert "<svg" in (workdir / "report.html").read_text()


def test_again_nothing_is_left_to_do(shared, file):
  workdir, _ = shared
  before = weights(workdir)
  out, err = run(file, workdir)
  assert "3 done" in out and "Starting" not in err
  _, err = run(file, workdir, "--points=2")
  assert "SEED=1 is done already" in err
  assert weights(workdir) == before


def test_a_point_that_is_killed_goes_on_and_ends_in_the_same_bits(
  shared, file, tmp_path
):
  workdir = tmp_path / "killed"
  sweep = start(file, workdir, "--points=3")

  def checkpoint():
    return list(workdir.glob("points/SEED=2/checkpoints/ckpt-*.index"))[1:]

  wait_for(checkpoint, sweep)
  os.kill(sweep.pid, signal.SIGKILL)  # one point is done in this process
  sweep.communicate()
  assert not records(workdir) and list(workdir.glob("claims/SEED=2/*"))
  _, err = run(file, workdir, "--points=3")  # its claim went with it
  assert "Going on from step" in err
  assert weights(workdir)["SEED=2"] == weights(shared[0])["SEED=2"]


def test_an_engine_by_one_binding_does_the_same(shared, file, tmp_path):
  binding = "--gin_param=sweep.Sweep.engine = @engines.Ray()"
  out, _ = run(file, tmp_path, binding, "--points=1/2")
  assert "2 done" in out
  expected = weights(shared[0])
  assert weights(tmp_path) == {n: expected[n] for n in ("SEED=0", "SEED=2")}


def wait_for(condition, process):
  for _ in range(1200):
    if found := condition():
      return found
    assert process.poll() is None, process.communicate()
    time.sleep(0.1)
  raise AssertionError("nothing happened for two minutes")


@pytest.fixture
def faked(tmp_path):
  """A gin file of two points that take no time."""
  path = tmp_path / "faked.gin"
  _, _, rest = FILE.partition("config.Launch.job")
  rest = rest.partition("sweep.Sweep:")[0]
  ours = f"{FAKED}\nSIZE = 1\nPEAK_LR = 0.1\nWRONG = None\nconfig.Launch.job"
  axes = "config.grid.SIZE = (1, 2)\nsweep.Sweep.poll_seconds = 0.1\n"
  path.write_text(f"{ours}{rest}{axes}")
  return str(path)


def test_a_point_that_fails_says_why_and_is_done_again(faked, tmp_path):
  workdir = tmp_path / "work"
  _, err = run(faked, workdir, "--gin_param=WRONG = 'large'", code=1)
  assert "error: 1 of 2 points failed, first SIZE=2 (this is too" in err
  assert "--points=failed" in err
  found = records(workdir)
  assert found["SIZE=1"]["state"] == "done"  # no other point was lost
  assert found["SIZE=2"]["reason"] == "this is too large; make it smaller."
  allowed = "--gin_param=config.Launch.allow_changes = ['WRONG']"
  out, _ = run(faked, workdir, allowed, "--points=failed")
  assert "2 done" in out


def test_one_that_is_asked_to_end_passes_it_on(faked, tmp_path):
  workdir = tmp_path / "work"
  sweep = start(faked, workdir, "--gin_param=WRONG = 'slow'")
  log = workdir / "points" / "SIZE=1" / "libraries.log"
  wait_for(lambda: log.exists() and "waiting" in log.read_text(), sweep)
  sweep.send_signal(signal.SIGTERM)
  _, err = sweep.communicate(timeout=60)
  assert sweep.returncode == 143 and "the same command goes on" in err
  assert not records(workdir) and not list(workdir.glob("claims/*/*"))


def test_what_cannot_be_built_is_refused_before_anything_runs(file, tmp_path):
  _, err = run(file, tmp_path, "--gin_param=BATCH_SIZE = 5_000", code=2)
  assert "less than one batch of 5,000" in err
  assert not list(tmp_path.iterdir())
