"""Two processes with collectives compute what one process computes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

WORKER = pathlib.Path(__file__).with_name("worker.py")


def start(**environment):
  return subprocess.Popen(
    [sys.executable, str(WORKER)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, **environment},
  )


def result(process):
  output, errors = process.communicate(timeout=180)
  assert process.returncode == 0, errors[-2000:]
  return json.loads(output.splitlines()[-1])


def test_sam_in_two_workers_equals_one_process(tf_configs):
  processes = [start(), *(start(TF_CONFIG=config) for config in tf_configs())]
  try:
    alone, *workers = map(result, processes)
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
