import io
import logging
import time

import pytest

from nfnets_tf.train.progress import Progress


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


@pytest.fixture
def lines(caplog):
  logger = logging.getLogger("nfnets_tf")
  logger.propagate = True
  caplog.set_level(logging.INFO, "nfnets_tf")
  return lambda: [record.getMessage() for record in caplog.records]


def make(stream=None, step=0, **options):
  clock = Clock()
  progress = Progress(
    total_steps=100,
    step=step,
    batch_size=64,
    stream=stream,
    clock=clock,
    **options,
  )
  return progress, clock


def test_lines_tell_step_loss_speed_and_time_left(lines):
  progress, clock = make(line_seconds=0)
  clock.now = 30.0
  progress.update(10, 2.0)  # compiled meanwhile: no speed is claimed
  clock.now = 32.0
  assert progress.update(20, 1.5) == 5 * 64
  assert lines() == [
    "step 10/100, loss 2.0000",
    "step 20/100, loss 1.5000, 320 images/s, 00:16 left",
  ]


def test_lines_are_not_written_more_often_than_asked_but_the_last_one_is(lines):
  progress, clock = make(line_seconds=5)
  for step in range(10, 101, 10):
    clock.now += 1.0
    progress.update(step, 1.0)
  steps = [line.split(",")[0] for line in lines()]
  assert steps == ["step 10/100", "step 60/100", "step 100/100"]


def test_what_is_not_training_is_not_counted(lines):
  progress, clock = make()
  progress.update(10, 1.0)
  clock.now = 60.0  # an evaluation
  progress.resume_clock()
  clock.now = 62.0
  assert progress.update(20, 1.0) == 5 * 64


def test_a_terminal_gets_a_bar_and_notes_above_it():
  stream = io.StringIO()
  progress, clock = make(stream, step=50)
  clock.now = 1.0
  progress.update(60, 1.25)
  progress.note("a note")
  progress.close()
  shown = stream.getvalue()
  assert "step 60/100, loss 1.2500, 640 images/s" in shown
  assert "60%" in shown and " left" in shown and "a note\n" in shown


def test_a_silent_one_only_measures(lines):
  progress, clock = make(line_seconds=0, silent=True)
  clock.now = 2.0
  assert progress.update(10, 2.0) == 5 * 64
  progress.note("a note")
  progress.update(100, 1.0)
  progress.close()
  assert lines() == []


def test_going_back_measures_from_there(lines):
  progress, clock = make(line_seconds=0, step=40)
  clock.now = 1.0
  progress.update(50, 1.0)
  clock.now = 60.0  # what was restored
  progress.go_back(20)
  clock.now = 62.0
  assert progress.update(30, 1.0) == 5 * 64
  assert lines()[-1] == "step 30/100, loss 1.0000, 320 images/s, 00:14 left"


def test_a_bar_goes_back_and_on_from_there():
  stream = io.StringIO()
  progress, clock = make(stream, step=60)

  def update(step):
    time.sleep(0.15)  # a bar is drawn ten times a second at most
    clock.now += 1.0
    progress.update(step, 1.25)

  update(70)
  update(80)
  progress.go_back(20)
  assert "20%" in last_of(stream) and "step 20/100" in last_of(stream)
  update(30)  # far from where it was
  assert "step 30/100, loss 1.2500, 640 images/s" in last_of(stream)
  progress.close()


def last_of(stream):
  """What a terminal shows now."""
  return stream.getvalue().rstrip().split("\r")[-1]
