import glob
import io
import json
import logging
import os
import resource
import time

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from nfnets_tf.errors import RunError
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_log import (
  MetricsLog,
  Progress,
  draw_curves,
  read_records,
)


def test_records_are_json_lines(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=90)
  log.write(10, {"loss": 1.5})
  log.write(20, {"loss": 1.25, "weights_sha256": "ab"})
  with open(files.metrics) as file:
    lines = [json.loads(line) for line in file]
  assert lines == [
    {"step": 10, "loss": 1.5},
    {"step": 20, "loss": 1.25, "weights_sha256": "ab"},
  ]
  assert read_records(files.metrics) == lines


def test_resuming_drops_records_after_the_checkpoint(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=90)
  for step in (10, 20, 30):
    log.write(step, {"loss": float(step)})
  log.write(30, {"weights_sha256": "ab"})
  with open(files.metrics, "a") as file:
    file.write('{"step": 40, "lo')  # killed while writing
  MetricsLog(files, step=30, end=30).write(40, {"loss": 4.0})
  steps = [record["step"] for record in read_records(files.metrics)]
  assert steps == [10, 20, 30, 40]
  MetricsLog(files, step=20, end=30)
  assert len(read_records(files.metrics)) == 2


def test_numbers_are_written_to_tensorboard(tmp_path):
  files = RunDir(str(tmp_path))
  MetricsLog(files, step=0, end=90).write(10, {"loss": 1.5, "note": "text"})
  (path,) = glob.glob(f"{files.tensorboard}/*")
  scalars = {}
  for event in tf.compat.v1.train.summary_iterator(path):
    for value in event.summary.value:
      scalars[value.tag] = (event.step, float(tf.make_ndarray(value.tensor)))
  assert scalars == {"loss": (10, 1.5)}


def test_resuming_with_more_epochs_keeps_the_final_record(tmp_path):
  """And with the same EPOCHS it is written again."""
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=30)
  log.write(30, {"loss": 3.0})
  log.write(30, {"weights_sha256": "ab"})
  whole = read_records(files.metrics)
  MetricsLog(files, step=30, end=60)
  assert read_records(files.metrics) == whole
  MetricsLog(files, step=30, end=30)
  assert read_records(files.metrics) == [{"step": 30, "loss": 3.0}]


def test_rolling_back_drops_later_records(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=90)
  for step in (10, 20, 30):
    log.write(step, {"loss": float(step)})
  log.drop_later(20)
  log.write(30, {"loss": 0.5})
  losses = [record["loss"] for record in read_records(files.metrics)]
  assert losses == [10.0, 20.0, 0.5]


def shown_by_tensorboard(files):
  """Returns {tag: [(step, value)]} as TensorBoard reads all event files."""
  accumulator = event_accumulator.EventAccumulator(
    files.tensorboard, size_guidance={"tensors": 0}
  )
  accumulator.Reload()
  return {
    tag: [
      (event.step, float(tf.make_ndarray(event.tensor_proto)))
      for event in accumulator.Tensors(tag)
    ]
    for tag in accumulator.Tags()["tensors"]
  }


def points_in_event_files(files):
  """Returns the sorted (step, tag) of all events as they are in the files."""
  return sorted(
    (event.step, value.tag)
    for path in glob.glob(f"{files.tensorboard}/*")
    for event in tf.compat.v1.train.summary_iterator(path)
    for value in event.summary.value
  )


def assert_logs_agree(files):
  """TensorBoard shows the numbers of metrics.jsonl, each step once."""
  expected = {}
  for record in read_records(files.metrics):
    for name, value in record.items():
      if name != "step" and isinstance(value, float):
        expected.setdefault(name, []).append((record["step"], value))
  shown = shown_by_tensorboard(files)
  # TensorBoard reads the files in the order of their names, which is not that
  # of their times for those of one process and second.
  assert {tag: sorted(some) for tag, some in shown.items()} == expected
  points = [(step, tag) for tag, some in expected.items() for step, _ in some]
  assert points_in_event_files(files) == sorted(points)


def write_all(log, steps, value):
  for step in steps:
    log.write(step, {"loss": value})
    if step % 20 == 0:
      log.write(step, {"heldout_loss": value, "ema_heldout_loss": value})


def test_tensorboard_shows_each_step_once_after_kills(tmp_path):
  files = RunDir(str(tmp_path))
  write_all(MetricsLog(files, step=0, end=90), range(4, 61, 4), 1.0)
  # Killed while it wrote; the second time before the first record.
  newest = max(glob.glob(f"{files.tensorboard}/*"), key=os.path.getmtime)
  with open(newest, "ab") as file:
    file.write(b"\x20\0\0")
  MetricsLog(files, step=40, end=90)
  assert_logs_agree(files)
  write_all(MetricsLog(files, step=40, end=90), range(44, 69, 4), 2.0)
  assert_logs_agree(files)
  write_all(MetricsLog(files, step=60, end=90), range(64, 89, 4), 3.0)
  assert_logs_agree(files)
  assert len(read_records(files.metrics)) == 22 + 4
  MetricsLog(files, step=0, end=90)
  assert points_in_event_files(files) == []


def test_tensorboard_after_rollbacks_and_a_final_record(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=60)
  write_all(log, range(4, 61, 4), 1.0)
  log.drop_later(40)  # rolled back
  assert_logs_agree(files)
  write_all(log, range(44, 61, 4), 2.0)
  log.drop_later(56)
  write_all(log, [60], 3.0)
  log.write(60, {"top1": 0.5, "weights_sha256": "ab"})
  assert_logs_agree(files)
  log = MetricsLog(files, step=60, end=60)  # killed before the result
  log.write(60, {"top1": 0.5, "weights_sha256": "ab"})
  assert_logs_agree(files)
  # With more epochs.
  write_all(MetricsLog(files, step=60, end=90), range(64, 81, 4), 4.0)
  assert_logs_agree(files)


def test_events_of_others_stay(tmp_path):
  files = RunDir(str(tmp_path))
  write_all(MetricsLog(files, step=0, end=90), range(4, 21, 4), 1.0)
  with tf.summary.create_file_writer(files.tensorboard).as_default():
    tf.summary.scalar("mine", 7.0, step=16)
  MetricsLog(files, step=8, end=90)
  assert shown_by_tensorboard(files)["mine"] == [(16, 7.0)]
  assert shown_by_tensorboard(files)["loss"] == [(4, 1.0), (8, 1.0)]


def test_other_workers_write_nothing(tmp_path):
  files = RunDir(str(tmp_path / "run"))
  log = MetricsLog(files, step=0, end=90, writes=False)
  log.write(10, {"loss": 1.5})
  log.drop_later(0)
  assert not os.path.exists(files.root)
  MetricsLog(files, step=0, end=90).write(10, {"loss": 1.5})
  MetricsLog(files, step=0, end=90, writes=False).drop_later(0)
  assert len(read_records(files.metrics)) == 1


def test_full_disk_is_a_run_error(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=90)
  os.remove(files.metrics)
  os.symlink("/dev/full", files.metrics)
  with pytest.raises(RunError, match="metrics.jsonl' cannot be written .*No s"):
    log.write(10, {"loss": 1.5})


def test_full_disk_for_tensorboard_is_a_run_error(tmp_path):
  log = MetricsLog(RunDir(str(tmp_path)), step=0, end=90)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # More than the record takes as text, less than it takes there.
  resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
  try:
    with pytest.raises(RunError, match="cannot be written"):
      log.write(10, {f"x{i}": 1.5 for i in range(100)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


def test_lines_show_step_loss_speed_and_time_left(lines):
  progress, clock = make(line_seconds=0)
  clock.now = 30.0
  progress.update(10, 2.0)  # includes compilation: no speed is shown
  clock.now = 32.0
  assert progress.update(20, 1.5) == 5 * 64
  assert lines() == [
    "step 10/100, loss 2.0000",
    "step 20/100, loss 1.5000, 320 images/s, 00:16 left",
  ]


def test_lines_are_throttled_except_the_last_one(lines):
  progress, clock = make(line_seconds=5)
  for step in range(10, 101, 10):
    clock.now += 1.0
    progress.update(step, 1.0)
  steps = [line.split(",")[0] for line in lines()]
  assert steps == ["step 10/100", "step 60/100", "step 100/100"]


def test_time_outside_training_is_excluded(lines):
  progress, clock = make()
  progress.update(10, 1.0)
  clock.now = 60.0  # an evaluation
  progress.resume_clock()
  clock.now = 62.0
  assert progress.update(20, 1.0) == 5 * 64


def test_terminal_shows_a_bar_and_notes_above_it():
  stream = io.StringIO()
  progress, clock = make(stream, step=50)
  clock.now = 1.0
  progress.update(60, 1.25)
  progress.note("a note")
  progress.close()
  shown = stream.getvalue()
  assert "step 60/100, loss 1.2500, 640 images/s" in shown
  assert "60%" in shown and " left" in shown and "a note\n" in shown


def test_silent_progress_only_measures(lines):
  progress, clock = make(line_seconds=0, silent=True)
  clock.now = 2.0
  assert progress.update(10, 2.0) == 5 * 64
  progress.note("a note")
  progress.update(100, 1.0)
  progress.close()
  assert lines() == []


def test_rolling_back_measures_from_the_earlier_step(lines):
  progress, clock = make(line_seconds=0, step=40)
  clock.now = 1.0
  progress.update(50, 1.0)
  clock.now = 60.0  # restoring
  progress.go_back(20)
  clock.now = 62.0
  assert progress.update(30, 1.0) == 5 * 64
  assert lines()[-1] == "step 30/100, loss 1.0000, 320 images/s, 00:14 left"


def test_bar_rolls_back():
  stream = io.StringIO()
  progress, clock = make(stream, step=60)

  def update(step):
    time.sleep(0.15)  # tqdm redraws ten times a second at most
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
  """Returns the line that a terminal shows at the end."""
  return stream.getvalue().rstrip().split("\r")[-1]


def draw(tmp_path, records):
  files = RunDir(str(tmp_path))
  with open(files.metrics, "w") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
  draw_curves(files, title="a run")
  return tf.io.decode_png(tf.io.read_file(files.curves), channels=3).numpy()


def test_draws_every_curve(tmp_path):
  records = []
  for step in range(1, 11):
    records.append(
      {"step": step, "loss": 2 / step, "top1": 0.09 * step}
      | {"learning_rate": 0.1}
    )
    for prefix in ("heldout", "ema_heldout"):
      records.append(
        {"step": step, f"{prefix}_loss": 1 / step, f"{prefix}_top1": 0.5}
      )
  image = draw(tmp_path, records)
  assert image.shape[1] > 1000
  colors = {tuple(pixel) for pixel in image.reshape(-1, 3)}
  for color in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # C0, C1, C2
    assert color in colors
  few = draw(tmp_path, records[:1])
  assert (44, 160, 44) not in {tuple(p) for p in few.reshape(-1, 3)}


def test_draws_empty_axes_without_records(tmp_path):
  assert draw(tmp_path, []).shape[2] == 3
