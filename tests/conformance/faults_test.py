"""What goes wrong around a run ends it in a sentence, and it goes on."""

import os
import pathlib
import shutil
import time

import pytest

from nfnets_tf.train.checkpoint_files import newest_in, steps_in

SMOKE = [
  "--gin_file=gin/quickstart.gin",
  "--gin_file=gin/overlays/smoke.gin",
  "--gin_param=EPOCHS = 200",
  "--gin_param=run_config.Schedule.evaluate_every = 400",
]


@pytest.fixture
def run(launchers, digits, tmp_path):
  """Starts a run, does something behind its next checkpoint, and waits.

  Returns (exit code, what was on the screen).
  """
  process = launchers()
  checkpoints = str(tmp_path / "run" / "checkpoints")

  def start(disturb):
    screen = tmp_path / "screen"
    screen.unlink(missing_ok=True)
    before = steps_in(checkpoints)[-1:] or [0]
    pid = process.start(
      *SMOKE, digits, f"--workdir={tmp_path / 'run'}", screen=screen
    )
    deadline = time.monotonic() + 120
    while steps_in(checkpoints)[-1:] <= before:
      assert os.path.exists(f"/proc/{pid}"), screen.read_text()
      assert time.monotonic() < deadline
      time.sleep(0.05)
    disturb()
    return process.wait(), screen.read_text()

  return start


def flip_a_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def test_a_lost_shard_a_damaged_checkpoint_and_a_vanished_folder(
  run, digits, tmp_path
):
  shards = pathlib.Path(digits.split("'")[1])

  def lose():
    shards.joinpath("train-00003-of-00008.tfrecord").rename(shards / "lost")

  code, screen = run(lose)
  last = screen.splitlines()[-1]
  assert code == 1 and last.startswith("error: a file is gone")
  assert "train-00003-of-00008.tfrecord" in last and "restore it" in last
  assert "Traceback" not in screen

  (shards / "lost").rename(shards / "train-00003-of-00008.tfrecord")
  newest = newest_in(str(tmp_path / "run" / "checkpoints"))
  flip_a_byte(pathlib.Path(f"{newest}.data-00000-of-00001"))
  code, screen = run(lambda: shutil.rmtree(tmp_path / "run"))
  assert f"{newest} is damaged" in screen and "Going on from step" in screen
  last = screen.splitlines()[-1]
  assert code == 1 and "cannot be written" in last and "make room" in last
  assert "Traceback" not in screen
