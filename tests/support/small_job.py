"""A job and an engine for tests of sweeps, without training."""

import collections
import os
import signal
import sys
import time
import types

from nfnets_tf.config import Configuration
from nfnets_tf.errors import Diverged, Preempted, UserError
from nfnets_tf.jobs.sweep import SweepJob
from nfnets_tf.keras_api import keras
from nfnets_tf.train.run_dir import RunDir

# A sweep of three points; an engine and a search can be bound.
SWEEP = """\
from __gin__ import dynamic_registration

from nfnets_tf import config
from nfnets_tf.scaling import engines
from nfnets_tf.scaling import sweep
from tests.support import small_job

SIZE = 1
PEAK_LR = 0.1
FAULT = None
config.Launch.job = @small_job.Job()
config.Launch.sweep = @sweep.Sweep()
small_job.Job:
  rate = %PEAK_LR
  size = %SIZE
  fault = %FAULT
sweep.Sweep:
  grid = @config.grid()
  tuning = None
  engine = @small_job.InProcess()
  loss = 'heldout_loss'
  poll_seconds = 0.05
  price = None
  report = None
sweep.GridSearch:
  macro = 'PEAK_LR'
  start = %PEAK_LR
  factor = 2.0
  both_sides = True
  most_trials = 8
engines.LocalProcesses.at_once = 1

config.grid.SIZE = (1, 2, 4)
"""


class Job:
  """A job whose loss follows from its bindings.

  Args:
    rate: best at 0.4; above 1 the loss diverges.
    size: lowers the loss.
    fault: what goes wrong in `run`, or None.
  """

  def __init__(self, *, rate, size, fault=None):
    self.rate, self.size, self.fault = rate, size, fault
    self.model = types.SimpleNamespace(network=_make_network)

  def figures(self, network):
    """Returns the cost."""
    assert network.count_params() == 2
    return {
      "parameters": self.size,
      "flops": 100.0 * self.size,
      "tpu_v4_core_hours": 2.0 * self.size,
    }

  def run(self, context):
    """Writes the result, or fails."""
    files = RunDir(context.workdir)
    files.write_config(context.config_text)
    context.on_start()
    with open(os.path.join(files.root, "runs"), "a") as file:
      file.write(".")
    fault = self.fault if self.fault != "large" or self.size > 1 else None
    if fault == "terminated":
      raise Preempted
    if fault == "slow":
      _wait_for_sigterm()
    if fault == "diverged" or self.rate > 1:
      raise Diverged("the loss is not finite; lower it.")
    if fault == "large":
      raise UserError("this is too large; make it smaller.")
    if fault == "bug":
      raise KeyError("what")
    loss = abs(self.rate - 0.4) + 1.0 / self.size
    result = {"heldout_loss": float("nan") if fault == "nan" else loss}
    files.write_result({} if fault == "no loss" else result)
    return f"loss {loss:.3f}"


def _make_network():
  return keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])


def _wait_for_sigterm():
  received = []
  signal.signal(signal.SIGTERM, lambda *_: received.append(True))
  sys.stderr.write("waiting\n")
  sys.stderr.flush()
  for _ in range(600):
    if received:
      raise Preempted
    time.sleep(0.1)


class Report:
  """A report that keeps the snapshots that it is given."""

  statuses: list = []

  def __call__(self, status, path):
    self.statuses.append((status, path))


class InProcess:
  """An engine that runs the trials in this process, one after the other."""

  def __init__(self):
    self.at_once, self._ended = 1, {}

  def submit(self, name, command, log):
    """Runs a command that has flags of launch/train.py."""
    flags = collections.defaultdict(list)
    for argument in command:
      flag, _, value = argument.partition("=")
      flags[flag].append(value)
    try:
      code = 0
      configuration = Configuration(flags["--gin_file"], flags["--gin_param"])
      job = SweepJob(configuration, *flags["--workdir"], command[:-1])
      job.run(*flags["--points"], terminal=None)
    except Preempted:
      code = 143
    except Exception as error:
      with open(log, "a") as file:
        file.write(str(error))
      code = 1
    self._ended[name] = code

  def wait(self, seconds):
    """Returns the exit codes of those that have run."""
    del seconds
    ended, self._ended = self._ended, {}
    return ended

  def stop(self):
    """Nothing runs."""
