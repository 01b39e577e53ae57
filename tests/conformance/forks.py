"""The real entry point in processes that begin with everything imported.

Importing takes longer than a small run. So this process imports, makes nothing,
and forks one that runs for each line that it reads; see conftest.py.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "launch"))
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import train  # launch/train.py

import nfnets_tf.config  # noqa: F401
import nfnets_tf.jobs.train  # noqa: F401
import nfnets_tf.serving.export  # noqa: F401


def main():
  """For each line: prints the process id, then the exit code."""
  for line in sys.stdin:
    arguments, screen, environment = json.loads(line)
    pid = os.fork()
    if not pid:
      os.environ.update(environment)
      output = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
      for descriptor in (1, 2):
        os.dup2(output, descriptor)
      code = train.main(["train.py", *arguments])
      sys.stdout.flush()
      os._exit(code)
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    _, status = os.waitpid(pid, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
  main()
