"""Calls to the hosts of a slice that training makes.

  python -m benchmarks.remote_calls

One process trains the tiny network of the tests on two hosts, TensorFlow's
servers on this machine (tests/support/pretended_slice.py), each behind a proxy
that counts the messages that it receives, from that process or the other host.
The proxies are a process of their own, since TensorFlow waits for a host while
it holds Python's lock.
"""

import collections
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import tensorflow as tf
from absl import flags

from benchmarks import entry
from nfnets_tf.config import Configuration
from nfnets_tf.train.run_dir import RunDir
from tests.support import pretended_slice

_STEPS = flags.DEFINE_integer("steps", 100, "Steps whose calls are counted.")
_PROXIES = flags.DEFINE_list("proxies", [], "Be the proxies of these ports.")


class Proxy(grpc.GenericRpcHandler):
  """Passes calls to a server, and counts the messages by method.

  Args:
    name: of the server, for `counts`.
    port: of this proxy.
    target: port of the server.
    counts: {name and method: messages}.
  """

  def __init__(self, name: str, port: int, target: int, counts: dict):
    unlimited = [
      (f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")
    ]
    self._name, self._counts, self._lock = name, counts, threading.Lock()
    self._channel = grpc.insecure_channel(f"localhost:{target}", unlimited)
    server = grpc.server(ThreadPoolExecutor(100), options=unlimited)
    server.add_generic_rpc_handlers([self])
    server.add_insecure_port(f"localhost:{port}")
    server.start()
    self._server = server

  def service(self, call_details):
    """Returns the handler of a call; a call of one message is a stream too."""
    method = call_details.method
    forward = self._channel.stream_stream(method)

    def count(requests):
      for request in requests:
        with self._lock:
          self._counts[f"{self._name} {method.rsplit('/')[-1]}"] += 1
        yield request

    def handle(requests, context):
      answers = forward(count(requests))
      context.add_callback(answers.cancel)
      try:
        yield from answers
      except grpc.RpcError as error:
        context.abort(error.code(), error.details())

    return grpc.stream_stream_rpc_method_handler(handle)


def main() -> None:
  """Prints the calls of a step and of an interval and, last, them as JSON."""
  if _PROXIES.value:
    _serve(_PROXIES.value)
    return
  ports = pretended_slice.free_ports(4)
  addresses = [f"localhost:{port}" for port in ports[:2]]
  hosts = pretended_slice.Hosts(addresses, ports[2:])
  command = [
    "-m",
    "benchmarks.remote_calls",
    f"--proxies={','.join(map(str, ports))}",
  ]
  proxies = subprocess.Popen(
    [sys.executable, *command],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  folder = tempfile.mkdtemp()
  try:
    _read(proxies)
    _count(pretended_slice.strategy(addresses=addresses), folder, proxies)
  finally:
    proxies.kill()
    hosts.close()
    shutil.rmtree(folder)


def _serve(ports: list[str]) -> None:
  """Is both proxies; answers each line with the messages so far."""
  counts = collections.Counter()
  for i in range(2):
    Proxy(f"host {i}", int(ports[i]), int(ports[i + 2]), counts)
  for _ in sys.stdin:
    print(json.dumps(counts), flush=True)


def _read(proxies: subprocess.Popen) -> collections.Counter:
  proxies.stdin.write("\n")
  proxies.stdin.flush()
  return collections.Counter(json.loads(proxies.stdout.readline()))


def _count(strategy, folder: str, proxies: subprocess.Popen) -> None:
  files = ["gin/quickstart.gin", "tests/support/tiny.gin"]
  job = Configuration(files, ["EPOCHS = 40"]).build_job()
  trainer = job.open_trainer(RunDir(folder), strategy)
  batches = iter(trainer._batches)

  def steps(number):
    trainer._train_steps(batches, tf.constant(number, tf.int64))
    trainer.classifier.optimizer.iterations.numpy()  # waits for them

  def messages(call):
    before = _read(proxies)
    call()
    time.sleep(1.0)  # the pipeline fills its buffers
    return _read(proxies) - before

  steps(10)  # traces, and fills buffers
  few, many = (messages(lambda n=n: steps(n)) for n in (1, 1 + _STEPS.value))
  step = {k: (many[k] - few[k]) / _STEPS.value for k in sorted(many)}
  parts = {
    "a call of a step": few,
    "reading the metrics": messages(trainer._read_metrics),
    "resetting the metrics": messages(trainer._reset_metrics),
    "the input monitor": messages(trainer._input_monitor.start_interval),
    "a checkpoint": messages(trainer.checkpoints.save),
    "evaluating": messages(
      lambda: trainer._evaluate_weights("", iter(trainer._heldout))
    ),
  }
  for name, number in step.items():
    print(f"{number:8.2f}  {name}, more for every step")
  for name, part in parts.items():
    print(f"{sum(part.values()):5}     {name}")
  totals = {name: sum(part.values()) for name, part in parts.items()}
  print(json.dumps({"step": step, **totals}))


if __name__ == "__main__":
  entry.run(main)
