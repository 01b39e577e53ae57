"""Two processes of the real entry point are one process, and lose nothing."""

import os
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.train.checkpoint_files import newest_in

SMOKE = [
  "--gin_file=gin/quickstart.gin",
  "--gin_file=gin/overlays/smoke.gin",
  "--gin_param=EPOCHS = 1.78",  # 80 steps: no last interval of its own length
  "--gin_param=nfnet.NFNet.stochdepth_rate = 0.3",
  "--gin_param=run_config.Schedule.evaluate_every = 40",
  "--gin_param=run_config.Schedule.steps_per_execution = 1",
]
AUTO = "--gin_param=STRATEGY = @distribution.auto"


@pytest.fixture
def start(tf_configs):
  """Starts a command in every process; returns their numbers."""

  def run(processes, arguments, screens):
    return [
      process.start(*arguments, screen=screen, TF_CONFIG=config)
      for process, screen, config in zip(processes, screens, tf_configs())
    ]

  return run


def wait_for(path, alive):
  deadline = time.monotonic() + 120
  while not path.exists():
    assert time.monotonic() < deadline and all(map(os.path.exists, alive)), path
    time.sleep(0.02)


def numbers(record):
  return {k: v for k, v in record.items() if isinstance(v, (int, float))}


def weights(workdir):
  reader = tf.train.load_checkpoint(newest_in(str(workdir / "checkpoints")))
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if name.startswith(("parameters/", "averages/", "optimizer/"))
  }


@pytest.fixture
def screens(tmp_path):
  return [tmp_path / f"screen{index}" for index in range(2)]


def test_two_workers_are_one_process_whatever_happens_to_them(
  launchers, start, digits, logged, tmp_path, screens
):
  """Killed each and both, and asked to end, they end in the same bits."""
  one, two, stopped = (tmp_path / name for name in ("one", "two", "stopped"))
  processes = [launchers(), launchers()]
  parts = "--gin_param=run_config.DataConfig.num_data_streams = 2"
  assert not processes[0].run(*SMOKE, digits, f"--workdir={one}", parts)

  start(processes, [*SMOKE, digits, AUTO, f"--workdir={two}"], screens)
  assert [process.wait() for process in processes] == [0, 0]
  assert "Found TF_CONFIG of 2 workers" in screens[0].read_text()
  pairs = list(zip(logged(one), logged(two)))
  assert len(pairs) == 22
  for alone, together in pairs:
    assert numbers(together) == pytest.approx(numbers(alone), rel=2e-5)
    if "loss" in alone:
      assert together["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    counts = [name for name in alone if "clipped" in name or "top" in name]
    assert [alone[n] for n in counts] == [together[n] for n in counts]
  want, got = weights(one), weights(two)
  assert want.keys() == got.keys()
  for name in want:  # workers_test.py shows 1e-6, after four steps
    np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)

  arguments = [*SMOKE, digits, AUTO, f"--workdir={stopped}"]
  checkpoint = stopped / "checkpoints"

  def stop_at(step, how, *victims):
    pids = start(processes, arguments, screens)
    alive = [f"/proc/{pid}" for pid in pids]
    wait_for(checkpoint / f"ckpt-{step}.index", alive)
    begin = time.monotonic()
    for victim in victims:
      os.kill(pids[victim], how)
    codes = [process.wait() for process in processes]
    assert time.monotonic() - begin < 60
    return codes

  for screen in screens:
    screen.unlink()
  assert stop_at(8, signal.SIGKILL, 1) == [1, -signal.SIGKILL]
  assert "worker 0 of 2 lost another one" in screens[0].read_text()
  assert stop_at(24, signal.SIGKILL, 0) == [-signal.SIGKILL, 1]
  assert "start the same command on all of them" in screens[1].read_text()
  assert stop_at(40, signal.SIGTERM, 1) == [143, 143]
  assert stop_at(56, signal.SIGKILL, 0, 1) == [-signal.SIGKILL] * 2
  start(processes, arguments, screens)
  assert [process.wait() for process in processes] == [0, 0]
  # Asked to end within an interval, the sums of its means were put together
  # and shared out anew, which may round otherwise.
  pairs = list(zip(logged(two), logged(stopped)))
  for a, b in pairs:
    assert numbers(a) == pytest.approx(numbers(b), rel=1e-6)
  assert sum(a != b for a, b in pairs) <= 1
  want, got = weights(two), weights(stopped)
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], name)
  assert (stopped / "libraries.log").exists()


def test_workers_without_a_shared_folder_end_before_the_first_step(
  launchers, tf_configs, digits, tmp_path, screens
):
  processes = [launchers(), launchers()]
  for index, config in enumerate(tf_configs()):
    processes[index].start(
      *SMOKE,
      digits,
      AUTO,
      f"--workdir={tmp_path / str(index)}",
      screen=screens[index],
      TF_CONFIG=config,
    )
  assert [process.wait() for process in processes] == [2, 2]
  for screen in screens:
    assert "checkpoints of different steps" in screen.read_text()
