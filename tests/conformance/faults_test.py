"""Faults around a run end it with one sentence, and it can be resumed."""

import pathlib

import pytest

from tests.support.launcher import TINY, checkpoint_steps, wait_until

RUN = [
  *TINY,
  "--gin_param=EPOCHS = 200",
  "--gin_param=run_config.Schedule.evaluate_every = 400",
]


@pytest.fixture
def run(launcher, digits, tmp_path):
  """Starts a run, disturbs it after its next checkpoint, and waits.

  Returns (exit code, output).
  """
  workdir = tmp_path / "run"

  def start(disturb):
    screen = tmp_path / "screen"
    screen.unlink(missing_ok=True)
    before = checkpoint_steps(workdir)[-1:] or [0]
    pid = launcher.start(*RUN, digits, f"--workdir={workdir}", stdout=screen)
    wait_until(lambda: checkpoint_steps(workdir)[-1:] > before, pid)
    disturb()
    return launcher.wait(), screen.read_text()

  return start


def flip_a_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def test_reports_a_lost_shard_a_damaged_checkpoint_and_a_lost_workdir(
  run, digits, tmp_path
):
  shards = pathlib.Path(digits.split("'")[1])

  def lose():
    shards.joinpath("train-00003-of-00008.tfrecord").rename(shards / "lost")

  code, screen = run(lose)
  last = screen.splitlines()[-1]
  assert code == 1 and last.startswith("error: ")
  assert "train-00003-of-00008.tfrecord" in last and "restore" in last
  assert "Traceback" not in screen

  (shards / "lost").rename(shards / "train-00003-of-00008.tfrecord")
  workdir = tmp_path / "run"
  newest = workdir / "checkpoints" / f"ckpt-{checkpoint_steps(workdir)[-1]}"
  flip_a_byte(pathlib.Path(f"{newest}.data-00000-of-00001"))
  code, screen = run(lambda: workdir.rename(tmp_path / "moved"))
  assert f"{newest} is damaged" in screen and "from step" in screen
  last = screen.splitlines()[-1]
  assert code == 1 and last.startswith("error: ") and str(workdir) in last
  assert "Traceback" not in screen
