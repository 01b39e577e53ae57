"""Two processes with collectives compute what one process computes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from tests.conformance.worker import train

WORKER = pathlib.Path(__file__).with_name("worker.py")


def start(tf_config):
  return subprocess.Popen(
    [sys.executable, str(WORKER)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "TF_CONFIG": tf_config},
  )


def result(process):
  output, errors = process.communicate(timeout=180)
  assert process.returncode == 0, errors[-2000:]
  return json.loads(output.splitlines()[-1])


def test_sam_in_two_workers_equals_one_process(tf_configs):
  processes = [start(config) for config in tf_configs()]
  try:
    alone = train(tf.distribute.OneDeviceStrategy("CPU:0"), hosts=1, host=0)
    workers = [result(process) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for worker in workers:
    for got, want in zip(worker["values"], alone["values"]):
      np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert worker["logs"].keys() == alone["logs"].keys()
    for name, value in alone["logs"].items():
      np.testing.assert_allclose(worker["logs"][name], value, rtol=1e-5)
  assert workers[0]["values"] == workers[1]["values"]
  assert alone["logs"]["sam_active"] == 0.5
