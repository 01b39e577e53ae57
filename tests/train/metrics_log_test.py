import glob
import json
import os
import resource

import pytest
import tensorflow as tf

from nfnets_tf.errors import RunError
from nfnets_tf.train.metrics_log import MetricsLog, read_records
from nfnets_tf.train.run_dir import RunDir


def test_records_are_one_json_object_a_line(tmp_path):
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


def test_going_on_forgets_what_no_checkpoint_covers(tmp_path):
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


def test_numbers_reach_tensorboard(tmp_path):
  files = RunDir(str(tmp_path))
  MetricsLog(files, step=0, end=90).write(10, {"loss": 1.5, "note": "text"})
  (path,) = glob.glob(f"{files.tensorboard}/*")
  found = {}
  for event in tf.compat.v1.train.summary_iterator(path):
    for value in event.summary.value:
      found[value.tag] = (event.step, float(tf.make_ndarray(value.tensor)))
  assert found == {"loss": (10, 1.5)}


def test_the_closing_record_of_a_shorter_run_stays(tmp_path):
  """Of a run that goes on with a larger EPOCHS; its own is written anew."""
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=30)
  log.write(30, {"loss": 3.0})
  log.write(30, {"weights_sha256": "ab"})
  whole = read_records(files.metrics)
  MetricsLog(files, step=30, end=60)
  assert read_records(files.metrics) == whole
  MetricsLog(files, step=30, end=30)
  assert read_records(files.metrics) == [{"step": 30, "loss": 3.0}]


def test_going_back_takes_out_later_records_and_goes_on_writing(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=90)
  for step in (10, 20, 30):
    log.write(step, {"loss": float(step)})
  log.drop_later(20)
  log.write(30, {"loss": 0.5})
  losses = [record["loss"] for record in read_records(files.metrics)]
  assert losses == [10.0, 20.0, 0.5]


def test_a_process_that_may_not_write_touches_nothing(tmp_path):
  files = RunDir(str(tmp_path / "run"))
  log = MetricsLog(files, step=0, end=90, writes=False)
  log.write(10, {"loss": 1.5})
  log.drop_later(0)
  assert not os.path.exists(files.root)
  MetricsLog(files, step=0, end=90).write(10, {"loss": 1.5})
  MetricsLog(files, step=0, end=90, writes=False).drop_later(0)
  assert len(read_records(files.metrics)) == 1


def test_a_full_disk_ends_in_a_sentence(tmp_path):
  files = RunDir(str(tmp_path))
  log = MetricsLog(files, step=0, end=90)
  os.remove(files.metrics)
  os.symlink("/dev/full", files.metrics)
  with pytest.raises(RunError, match="metrics.jsonl' cannot be written .*No s"):
    log.write(10, {"loss": 1.5})


def test_what_tensorboard_cannot_write_ends_in_a_sentence(tmp_path):
  log = MetricsLog(RunDir(str(tmp_path)), step=0, end=90)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # More than the record takes as text, less than it takes there.
  resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
  try:
    with pytest.raises(RunError, match="cannot be written"):
      log.write(10, {f"x{i}": 1.5 for i in range(100)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
