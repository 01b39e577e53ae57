"""Two worker processes of the entry point match one process."""

import os
import signal
import time

import numpy as np
import pytest

from tests.support.launcher import (
  TINY,
  assert_same_tensors,
  checkpoint_tensors,
  wait_until,
)

RUN = [
  *TINY,
  "--gin_param=EPOCHS = 0.72",  # 32 steps
  "--gin_param=run_config.Schedule.evaluate_every = 16",
  "--gin_param=run_config.Schedule.steps_per_execution = 1",
]
AUTO = "--gin_param=STRATEGY = @distribution.auto"


@pytest.fixture
def start(tf_configs):
  """Starts a command in every process; returns their process ids."""

  def run(processes, arguments, screens):
    return [
      process.start(*arguments, stdout=screen, TF_CONFIG=config)
      for process, screen, config in zip(processes, screens, tf_configs())
    ]

  return run


def numbers(record):
  return {k: v for k, v in record.items() if isinstance(v, (int, float))}


def state(workdir):
  """Weights, averages and momentum: metrics are sums of one worker."""
  return {
    name: tensor
    for name, tensor in checkpoint_tensors(workdir).items()
    if name.startswith(("parameters/", "averages/", "optimizer/"))
  }


@pytest.fixture
def screens(tmp_path):
  return [tmp_path / f"screen{index}" for index in range(2)]


def assert_same_trajectory(alone, together):
  """Compares the logs of one process and of two."""
  assert len(alone) == len(together) > 8
  for want, got in zip(alone, together):
    assert numbers(got) == pytest.approx(numbers(want), rel=2e-5)
    if "loss" in want:
      assert got["loss"] == pytest.approx(want["loss"], abs=1e-6)
    counts = [name for name in want if "clipped" in name or "top" in name]
    assert [want[n] for n in counts] == [got[n] for n in counts]


@pytest.mark.soak
def test_two_workers_match_one_process_and_resume_bit_identically(
  launchers, start, digits, logged, tmp_path, screens
):
  """After one is killed, and after one receives SIGTERM."""
  single, pair, stopped = (tmp_path / x for x in ("one", "two", "stopped"))
  processes = [launchers(), launchers()]
  parts = "--gin_param=run_config.DataConfig.num_data_streams = 2"
  assert not processes[0].run(*RUN, digits, f"--workdir={single}", parts)
  start(processes, [*RUN, digits, AUTO, f"--workdir={pair}"], screens)
  assert [process.wait() for process in processes] == [0, 0]
  assert "Found TF_CONFIG of 2 workers" in screens[0].read_text()
  assert_same_trajectory(logged(single), logged(pair))
  want = state(single)
  for name, got in state(pair).items():  # workers_test.py shows 1e-6
    np.testing.assert_allclose(got, want[name], rtol=0, atol=1e-5)

  arguments = [*RUN, digits, AUTO, f"--workdir={stopped}"]

  def stop_at(step, how, victim):
    pids = start(processes, arguments, screens)
    checkpoint = stopped / "checkpoints" / f"ckpt-{step}.index"
    wait_until(checkpoint.exists, *pids)
    begin = time.monotonic()
    os.kill(pids[victim], how)
    codes = [process.wait() for process in processes]
    assert time.monotonic() - begin < 60
    return codes

  assert stop_at(8, signal.SIGKILL, 0) == [-signal.SIGKILL, 1]
  assert "same command on all of them" in screens[1].read_text()
  assert stop_at(16, signal.SIGTERM, 1) == [143, 143]
  start(processes, arguments, screens)
  assert [process.wait() for process in processes] == [0, 0]
  # SIGTERM within an interval: the workers' sums of its means are added and
  # shared again, which may round differently.
  pairs = list(zip(logged(pair), logged(stopped)))
  for want, got in pairs:
    assert numbers(got) == pytest.approx(numbers(want), rel=1e-6)
  assert sum(want != got for want, got in pairs) <= 1
  assert_same_tensors(state(stopped), state(pair))
  assert (stopped / "libraries.log").exists()


@pytest.mark.soak
@pytest.mark.parametrize("victims", [(1,), (0, 1)], ids=["not chief", "both"])
def test_resumes_bit_identically_after_workers_are_killed(
  launchers, start, digits, logged, tmp_path, screens, victims
):
  """The chief is killed in the test above."""
  processes = [launchers(), launchers()]

  def command(name):
    return [*RUN, digits, AUTO, f"--workdir={tmp_path / name}"]

  start(processes, command("whole"), screens)
  assert [process.wait() for process in processes] == [0, 0]
  pids = start(processes, command("killed"), screens)
  checkpoint = tmp_path / "killed" / "checkpoints" / "ckpt-8.index"
  wait_until(checkpoint.exists, *pids)
  for victim in victims:
    os.kill(pids[victim], signal.SIGKILL)
  codes = [process.wait() for process in processes]
  assert codes == [
    -signal.SIGKILL if index in victims else 1 for index in range(2)
  ]
  if victims == (1,):
    assert "worker 0 of 2 lost" in screens[0].read_text()
  start(processes, command("killed"), screens)
  assert [process.wait() for process in processes] == [0, 0]
  assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
  assert_same_tensors(state(tmp_path / "killed"), state(tmp_path / "whole"))


@pytest.mark.soak
def test_workers_without_shared_storage_fail_before_the_first_step(
  launchers, tf_configs, digits, tmp_path, screens
):
  processes = [launchers(), launchers()]
  for index, config in enumerate(tf_configs()):
    processes[index].start(
      *RUN,
      digits,
      AUTO,
      f"--workdir={tmp_path / str(index)}",
      stdout=screens[index],
      TF_CONFIG=config,
    )
  assert [process.wait() for process in processes] == [2, 2]
  for screen in screens:
    assert "checkpoints of different steps" in screen.read_text()
