"""A job and an engine for tests of sweeps, without training."""

import json
import os
import signal
import sys
import time
import types

from tensorflow import keras

from nfnets_tf.config import Configuration
from nfnets_tf.config.sweeping import SweepRun
from nfnets_tf.errors import Diverged, Preempted, UserError


class Job:
  """Its loss follows from its bindings; some of them go wrong.

  Args:
    rate: best at 0.4.
    size: lowers the loss.
    wrong: what happens in `run`.
  """

  def __init__(self, *, rate, size, wrong=None):
    self.rate, self.size, self.wrong = rate, size, wrong
    self.model = types.SimpleNamespace(network=_make_network)

  def figures(self, network):
    assert network.count_params() == 2
    return {
      "parameters": self.size,
      "flops": 100.0 * self.size,
      "tpu_v4_core_hours": 2.0 * self.size,
    }

  def run(self, context):
    workdir = context.workdir
    os.makedirs(workdir, exist_ok=True)
    with open(os.path.join(workdir, "config.gin"), "w") as file:
      file.write(context.config_text)
    context.on_start()
    wrong = self.wrong if self.wrong != "large" or self.size > 1 else None
    if wrong == "asked to end":
      raise Preempted
    if wrong == "slow":
      _wait_for_sigterm()
    if wrong == "diverged" or self.rate > 1:
      raise Diverged("the loss is not finite; lower it.")
    if wrong == "large":
      raise UserError("this is too large; make it smaller.")
    if wrong == "bug":
      raise KeyError("what")
    loss = abs(self.rate - 0.4) + 1.0 / self.size
    result = {"heldout_loss": float("nan") if wrong == "nan" else loss}
    with open(os.path.join(workdir, "result.json"), "w") as file:
      json.dump({} if wrong == "no loss" else result, file)
    return f"loss {loss:.3f}"


def _make_network() -> keras.Model:
  return keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])


def _wait_for_sigterm():
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  sys.stderr.write("waiting\n")
  sys.stderr.flush()
  for _ in range(600):
    if asked:
      raise Preempted
    time.sleep(0.1)


class InProcess:
  """An engine that runs the points here, one after the other."""

  def __init__(self):
    self.at_once, self._ended = 1, {}

  def submit(self, name, command, log):
    *given, workdir, points = command
    try:
      code = 0
      configuration = Configuration(given[:1], given[1:])
      run = SweepRun(configuration, workdir, command[:-1])
      run.run(points.partition("=")[2], terminal=None)
    except Preempted:
      code = 143
    except Exception as error:
      with open(log, "a") as file:
        file.write(str(error))
      code = 1
    self._ended[name] = code

  def wait(self, seconds):
    del seconds
    ended, self._ended = self._ended, {}
    return ended

  def stop(self):
    """Nothing runs."""
