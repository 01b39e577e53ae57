"""Imports everything, then forks a process for each run that it reads.

It must not use TensorFlow before it forks: its threads would be missing in the
children. See launcher.py.
"""

import json
import os
import signal
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import nfnets_tf.config  # noqa: F401
import nfnets_tf.jobs.train  # noqa: F401
import nfnets_tf.serving.export  # noqa: F401
from nfnets_tf import launch
from nfnets_tf.train import inputs

# A run of the tiny network always waits for its data, and would spend seconds
# on measuring why.
inputs.profile_stages = lambda *_, **__: {"not measured": 0.0}


def run(arguments, streams, environment):
  """Becomes the run: never returns."""
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
  for line in sys.stdin:
    arguments, streams, environment = json.loads(line)
    pid = os.fork()
    if not pid:
      run(arguments, streams, environment)
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    _, status = os.waitpid(pid, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
  main()
