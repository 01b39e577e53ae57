"""Killed at any moment, a run ends in the same bits as one never killed."""

import contextlib
import os
import random
import signal
import time

import numpy as np
import tensorflow as tf

from nfnets_tf.train.checkpoint_files import newest_in, steps_in

KILLS = 20
SEED = 20261121
SMOKE = [
  "--gin_file=gin/quickstart.gin",
  "--gin_file=gin/overlays/smoke.gin",
  "--gin_param=EPOCHS = 3.56",  # 160 steps: no last interval of its own length
  "--gin_param=nfnet.NFNet.stochdepth_rate = 0.3",
  "--gin_param=run_config.Schedule.checkpoint_every = 4",
  "--gin_param=run_config.Schedule.evaluate_every = 40",
  "--gin_param=run_config.Schedule.steps_per_execution = 1",
]


def tensors(workdir):
  """All that the last checkpoint holds."""
  reader = tf.train.load_checkpoint(newest_in(str(workdir / "checkpoints")))
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
  }


def wait_for_its_moment(kind, workdir, alive, seconds, draw):
  """Any time at all, any time in training, or while a checkpoint is written."""
  checkpoints = workdir / "checkpoints"
  if kind == 0:
    time.sleep(draw.uniform(0, seconds))
    return
  before = steps_in(str(checkpoints))
  while alive() and steps_in(str(checkpoints)) == before:
    time.sleep(0.01)
  time.sleep(draw.uniform(0, 1))
  while kind == 2 and alive() and not (checkpoints / "partial").exists():
    pass
  if kind == 2:
    time.sleep(draw.uniform(0, 0.004))


def kill(pid):
  with contextlib.suppress(ProcessLookupError):  # it may be done
    os.kill(pid, signal.SIGKILL)


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def assert_same_tensors(killed, whole):
  want, got = tensors(whole), tensors(killed)
  assert got.keys() == want.keys() and len(want) > 100
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], name)


def test_killed_at_random_moments_it_ends_in_the_same_bits(
  launchers, digits, logged, tmp_path
):
  """Also at its start, and while a checkpoint is written."""
  whole, draw, processes = tmp_path / "whole", random.Random(SEED), launchers()
  begin = time.monotonic()
  assert not processes.run(*SMOKE, digits, f"--workdir={whole}")
  seconds = time.monotonic() - begin
  kills, runs, reached = 0, 0, []
  while kills < KILLS:
    runs += 1
    workdir = tmp_path / f"killed{runs}"
    done = False
    while not done:
      pid = processes.start(*SMOKE, digits, f"--workdir={workdir}")
      if kills < KILLS:
        kind = (0, 1, 2, 1, 2)[kills % 5]
        wait_for_its_moment(
          kind, workdir, lambda pid=pid: alive(pid), seconds, draw
        )
        kill(pid)
      done = processes.wait() == 0
      kills += not done
      reached += steps_in(str(workdir / "checkpoints"))[-1:]
    assert logged(workdir) == logged(whole)
    assert_same_tensors(workdir, whole)
  # Otherwise little was shown: it must have been in the middle, many times.
  assert len({step for step in reached if 0 < step < 160}) >= 5, reached
