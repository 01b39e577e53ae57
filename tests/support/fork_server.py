"""Imports everything, then forks a process for each run that it reads.

It must not use TensorFlow before it forks: its threads would be missing in the
children. See launcher.py.
"""

import functools
import json
import os
import signal
import sys
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from tensorflow.python.autograph.core import converter
from tensorflow.python.autograph.impl import api

import nfnets_tf.config  # noqa: F401
import nfnets_tf.jobs.train  # noqa: F401
import nfnets_tf.serving.export  # noqa: F401
from nfnets_tf import launch
from nfnets_tf.train import inputs

# A run of the tiny network always waits for its data, and would spend seconds
# on measuring why.
inputs.profile_stages = lambda *_, **__: {"not measured": 0.0}

# AutoGraph takes seconds to convert what a run traces. What one run has
# converted is converted here, once, for the next ones.
convert = api._convert_actual


def record_conversions(file):
  """Writes the names of the functions that AutoGraph converts to a file."""

  def convert_and_record(function, context):
    words = function.__module__, function.__qualname__
    file.write(f"{' '.join(words)} {context.options.user_requested:d}\n")
    file.flush()
    return convert(function, context)

  api._convert_actual = convert_and_record


def repeat_conversions(file):
  """Converts the functions in a file, which is emptied."""
  file.seek(0)
  for line in file:
    try:
      module, name, user_requested = line.split()
      function = functools.reduce(getattr, name.split("."), sys.modules[module])
      options = converter.ConversionOptions(
        recursive=True,
        user_requested=user_requested == "1",
        optional_features=None,
      )
      convert(function, converter.ProgramContext(options))
    except Exception:
      continue  # such as a local function, which every run converts
  file.seek(0)
  file.truncate()


def run(arguments, streams, environment, conversions):
  """Becomes the run: never returns."""
  record_conversions(conversions)
  os.environ.update(environment)
  flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
  for descriptor, path in zip((1, 2), streams):
    os.dup2(os.open(path, flags), descriptor)
  code = launch.main(["train.py", *arguments])
  sys.stdout.flush()
  os._exit(code)


def main():
  """For each line: prints the process id, then the exit code."""
  # A shell makes what it runs in the background ignore it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  conversions = tempfile.TemporaryFile("w+")  # shared with the runs
  for line in sys.stdin:
    repeat_conversions(conversions)
    pid = os.fork()
    if not pid:
      run(*json.loads(line), conversions)
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    _, status = os.waitpid(pid, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
  main()
