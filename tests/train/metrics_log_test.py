import glob
import json

import tensorflow as tf

from nfnets_tf.train.metrics_log import MetricsLog, read_records
from nfnets_tf.train.workdir import Workdir


def test_records_are_one_json_object_a_line(tmp_path):
  files = Workdir(str(tmp_path))
  log = MetricsLog(files, step=0)
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
  files = Workdir(str(tmp_path))
  log = MetricsLog(files, step=0)
  for step in (10, 20, 30):
    log.write(step, {"loss": float(step)})
  log.write(30, {"weights_sha256": "ab"})
  with open(files.metrics, "a") as file:
    file.write('{"step": 40, "lo')  # killed while writing
  MetricsLog(files, step=30).write(40, {"loss": 4.0})
  steps = [record["step"] for record in read_records(files.metrics)]
  assert steps == [10, 20, 30, 40]
  MetricsLog(files, step=20)
  assert len(read_records(files.metrics)) == 2


def test_numbers_reach_tensorboard(tmp_path):
  files = Workdir(str(tmp_path))
  MetricsLog(files, step=0).write(10, {"loss": 1.5, "note": "text"})
  (path,) = glob.glob(f"{files.tensorboard}/*")
  found = {}
  for event in tf.compat.v1.train.summary_iterator(path):
    for value in event.summary.value:
      found[value.tag] = (event.step, float(tf.make_ndarray(value.tensor)))
  assert found == {"loss": (10, 1.5)}
