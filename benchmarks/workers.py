"""Throughput of two processes on one machine against one process.

  python -m benchmarks.workers

One process with all cores and two workers with half of them each train the same
network on the same global batch under `distribution.auto`, in turn. The steps
are complete: AGC, momentum, decay, averages and all metrics.
"""

import json
import os
import socket
import statistics
import subprocess
import sys

import numpy as np
from absl import flags

from benchmarks import entry
from benchmarks.timing import median_ratio, seconds_side_by_side

_VARIANT = flags.DEFINE_string("variant", "pico", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Pixels per side.")
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 128, "Images per step, in all."
)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps per timing.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Number of timings.")
_SERVE = flags.DEFINE_bool("serve", False, "Be one of the processes.")


def main() -> None:
  """Prints images per second and, last, the ratio as JSON."""
  if _SERVE.value:
    _serve()
    return
  cores = len(os.sched_getaffinity(0))
  alone = [_start({})]
  together = [
    _start(
      {
        "TF_CONFIG": config,
        "TF_NUM_INTRAOP_THREADS": str(max(1, cores // 2)),
        "TF_NUM_INTEROP_THREADS": str(max(1, cores // 2)),
      }
    )
    for config in _cluster(2)
  ]
  try:
    seconds = seconds_side_by_side(
      {"one": lambda: _step(alone), "two": lambda: _step(together)},
      rounds=_ROUNDS.value,
    )
  finally:
    for process in (*alone, *together):
      process.kill()
  images = _BATCH_SIZE.value * _STEPS.value
  for name, times in seconds.items():
    rate = images / statistics.median(times)
    print(f"{name:>4} {rate:8.1f} images/s")
  ratio = median_ratio(seconds["one"], seconds["two"])
  print(json.dumps({"two_workers_over_one": round(ratio, 3)}))


def _cluster(count: int) -> list[str]:
  """Returns the TF_CONFIG of each process, with free ports."""
  sockets = [socket.socket() for _ in range(count)]
  for port in sockets:
    port.bind(("localhost", 0))
  workers = [f"localhost:{port.getsockname()[1]}" for port in sockets]
  for port in sockets:
    port.close()
  cluster = {"worker": workers}
  return [
    json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    for index in range(count)
  ]


def _start(environment: dict[str, str]) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "benchmarks.workers", "--serve", *sys.argv[1:]],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
  )


def _step(processes) -> None:
  for process in processes:
    process.stdin.write("go\n")
    process.stdin.flush()
  for process in processes:
    if process.stdout.readline() != "done\n":
      raise RuntimeError(f"process {process.pid} has ended.")


def _serve() -> None:
  """Runs --steps steps for each line of standard input."""
  import tensorflow as tf

  from nfnets_tf.models.nfnet import NFNet
  from nfnets_tf.optim.sgd import SGD
  from nfnets_tf.train import distribution
  from nfnets_tf.train.classifier import Classifier

  strategy = distribution.auto()
  with strategy.scope():
    model = Classifier(NFNet(_VARIANT.value, 10))
    model.compile(SGD(0.1))
  batch = _BATCH_SIZE.value // strategy.num_replicas_in_sync
  images = np.zeros([batch, *[_IMAGE_SIZE.value] * 2, 3], np.uint8)
  data = tf.data.Dataset.from_tensors((images, np.zeros([batch], np.int32)))
  # Destroying the iterator of `fit` would wait for tf.data's autotuner.
  options = tf.data.Options()
  options.autotune.enabled = False
  batches = strategy.distribute_datasets_from_function(
    lambda context: data.repeat().with_options(options)
  )
  for _ in sys.stdin:
    model.fit(batches, steps_per_epoch=_STEPS.value, verbose=0)
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
  entry.run(main)
