"""A run killed at any moment ends bit-identical to one never killed."""

import contextlib
import itertools
import os
import random
import signal
import time

import numpy as np
import pytest

from tests.support.launcher import (
  TINY,
  assert_same_tensors,
  checkpoint_steps,
  checkpoint_tensors,
  is_alive,
)

SEED = 20261121
SMOKE = ["--gin_file=gin/quickstart.gin", "--gin_file=gin/overlays/smoke.gin"]
INTERVALS = [
  "--gin_param=run_config.Schedule.checkpoint_every = 4",
  "--gin_param=run_config.Schedule.evaluate_every = 40",
  "--gin_param=run_config.Schedule.steps_per_execution = 1",
]
SPARSE = "--gin_file=gin/overlays/sparse.gin"
# 80 and 160 steps: the last interval is shorter.
TINY_RUN = [
  *TINY,
  SPARSE,
  *INTERVALS,
  "--gin_param=EPOCHS = 1.78",
  "--gin_param=tiny.network.sparse = 'live'",
]
NFNET_RUN = [
  *SMOKE,
  SPARSE,
  *INTERVALS,
  "--gin_param=EPOCHS = 3.56",
  "--gin_param=nfnet.NFNet.stochdepth_rate = 0.3",
]
MOMENTS = (
  "any time",
  "training",
  "writing a checkpoint",
  "training",
  "writing a checkpoint",
)


def wait_for_moment(moment, workdir, pid, seconds, draw):
  """Waits for a random moment of a kind in a run of so many seconds."""
  if moment == "any time":
    time.sleep(draw.uniform(0, seconds))
    return
  before = checkpoint_steps(workdir)
  while is_alive(pid) and checkpoint_steps(workdir) == before:
    time.sleep(0.01)
  time.sleep(draw.uniform(0, 0.3))
  if moment == "writing a checkpoint":
    partial = workdir / "checkpoints" / "partial"
    while is_alive(pid) and not partial.exists():
      pass
    time.sleep(draw.uniform(0, 0.004))


def run_with_kills(launcher, command, folder, moments, seconds, draw):
  """Runs and kills until all moments are spent.

  Returns:
    (work directories of the runs, each finished; newest step after each kill).
  """
  workdirs, steps = [], []
  moments = list(moments)
  while moments:
    workdir = folder / f"killed{len(workdirs)}"
    workdirs.append(workdir)
    finished = False
    while not finished:
      pid = launcher.start(*command, f"--workdir={workdir}")
      if moments:
        wait_for_moment(moments[0], workdir, pid, seconds, draw)
        with contextlib.suppress(ProcessLookupError):  # it has just finished
          os.kill(pid, signal.SIGKILL)
      code = launcher.wait()
      assert code in (0, -signal.SIGKILL)
      finished = code == 0
      if not finished:
        moments = moments[1:]
        steps += checkpoint_steps(workdir)[-1:]
  return workdirs, steps


@pytest.mark.parametrize(
  "command, kills",
  [
    pytest.param(TINY_RUN, 3, id="3 kills"),
    pytest.param(NFNET_RUN, 20, id="20 kills", marks=pytest.mark.soak),
  ],
)
def test_resumes_bit_identically_after_kill(
  launcher, digits, logged, tmp_path, command, kills
):
  """At any time, start-up and the writing of a checkpoint included."""
  draw = random.Random(SEED)
  command = [*command, digits]
  whole = tmp_path / "whole"
  begin = time.monotonic()
  assert not launcher.run(*command, f"--workdir={whole}")
  seconds = time.monotonic() - begin
  moments = itertools.islice(itertools.cycle(MOMENTS), kills)
  workdirs, steps = run_with_kills(
    launcher, command, tmp_path, moments, seconds, draw
  )
  want = checkpoint_tensors(whole)
  zeros = [np.mean(tensor == 0) for tensor in want.values() if tensor.ndim == 4]
  assert max(zeros) == 0.75
  for workdir in workdirs:
    assert logged(workdir) == logged(whole)
    assert_same_tensors(checkpoint_tensors(workdir), want)
  # Little would be shown if all kills came before training or at its end.
  last = checkpoint_steps(whole)[-1]
  assert len({step for step in steps if 0 < step < last}) >= kills // 4, steps
