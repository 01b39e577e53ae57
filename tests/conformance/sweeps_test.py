"""Sweeps by the real entry point: failures, signals, and a killed point."""

import os
import signal

import pytest

from nfnets_tf.scaling.sweep_store import SweepStore
from tests.support import small_job
from tests.support.launcher import TINY, wait_until

AXES = """\
from __gin__ import dynamic_registration

from nfnets_tf import config

include 'gin/sweeps/base.gin'

config.grid.SEED = (0, 1, 2)
"""


@pytest.fixture
def launch(launcher, tmp_path):
  """Runs a sweep of the small job; returns the exit code and the output."""
  file = tmp_path / "sweep.gin"
  file.write_text(small_job.SWEEP)

  def launch(*arguments):
    flags = [f"--gin_file={file}", f"--workdir={tmp_path / 'work'}"]
    return launcher.launch(*flags, *arguments, folder=tmp_path / "output")

  launch.flags = [f"--gin_file={file}", f"--workdir={tmp_path / 'work'}"]
  return launch


@pytest.fixture
def store(tmp_path):
  return SweepStore(str(tmp_path / "work"))


def states(store):
  return {name: trial.state for name, trial in store.trials().items()}


def test_failed_points_are_reported_and_retried(launch, store):
  ended = launch("--gin_param=FAULT = 'large'")
  assert ended.returncode == 1 and "--points=failed" in ended.stderr
  assert "2 of 3 points failed, the first one SIZE=2 (this is" in ended.stderr
  assert store.trial("SIZE=1").state == "done"  # the others have run
  assert store.trial("SIZE=2").reason == "this is too large; make it smaller."
  allowed = "--gin_param=config.Launch.allow_changes = ['FAULT']"
  ended = launch(allowed, "--points=failed")
  assert ended.returncode == 0 and "3 done" in ended.stdout
  ended = launch(allowed, "--points=2")
  assert ended.returncode == 0 and "SIZE=2 is already done" in ended.stderr


def test_terminated_sweep_terminates_its_processes(
  launcher, launch, store, tmp_path
):
  """With the processes of a real sweep, two at a time."""
  engine = "sweep.Sweep.engine = @engines.LocalProcesses()"
  parameters = [engine, "engines.LocalProcesses.at_once = 2", "FAULT = 'slow'"]
  flags = [*launch.flags, *(f"--gin_param={p}" for p in parameters)]
  screen = tmp_path / "screen"
  pid = launcher.start(*flags, stdout=screen)
  logs = [tmp_path / f"work/points/SIZE={n}/libraries.log" for n in (1, 2)]
  wait_until(
    lambda: all(p.exists() and "waiting" in p.read_text() for p in logs), pid
  )
  assert states(store) == {"SIZE=1": "running", "SIZE=2": "running"}
  os.kill(pid, signal.SIGTERM)
  assert launcher.wait() == 143
  assert states(store) == {"SIZE=1": "pending", "SIZE=2": "pending"}


@pytest.mark.soak
def test_killed_point_resumes(launcher, tmp_path, store, digits):
  """That it ends in the same bits is shown by kill_test.py."""
  axes = tmp_path / "axes.gin"
  axes.write_text(AXES)
  flags = [*TINY, f"--gin_file={axes}", digits, "--points=3"]
  flags.append(f"--workdir={store.root}")
  checkpoints = tmp_path / "work/points/SEED=2/checkpoints"
  pid = launcher.start(*flags, stdout=tmp_path / "first")
  wait_until(lambda: len(list(checkpoints.glob("ckpt-*.index"))) > 1, pid)
  os.kill(pid, signal.SIGKILL)
  launcher.wait()
  assert list(checkpoints.parent.glob("lease-*"))
  assert states(store) == {"SEED=2": "pending"}
  assert launcher.run(*flags, stdout=tmp_path / "second") == 0
  assert states(store) == {"SEED=2": "done"}
  assert "from step" in (tmp_path / "second").read_text()
  results = (tmp_path / "work/results.csv").read_text().splitlines()
  assert len(results) == 4 and "heldout_loss" in results[0]


def test_invalid_point_is_refused_before_anything_runs(
  launcher, tmp_path, digits
):
  axes = tmp_path / "axes.gin"
  axes.write_text(AXES)
  ended = launcher.launch(
    *[*TINY, f"--gin_file={axes}", digits],
    f"--workdir={tmp_path / 'work'}",
    "--gin_param=BATCH_SIZE = 5_000",
    folder=tmp_path / "output",
  )
  assert ended.returncode == 2 and "5,000" in ended.stderr
  assert not (tmp_path / "work").exists()
