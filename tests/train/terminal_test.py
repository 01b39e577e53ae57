import os
import subprocess
import sys

SCRIPT = """
import ctypes, logging, sys, warnings
from nfnets_tf.train.terminal import QuietScreen
quiet = QuietScreen()
libc = ctypes.CDLL(None)
libc.dprintf(2, b"from C one\\n")
warnings.warn("from Python's warnings")
print("from a library's print", file=sys.stderr)
logging.getLogger("nfnets_tf").info("from the project")
quiet.move_log(sys.argv[1])
libc.dprintf(2, b"from C two\\n")
assert quiet.terminal is None
if len(sys.argv) > 2:
  libc.abort()
"""


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-c", SCRIPT, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONWARNINGS": "default"},
  )


def test_only_project_messages_reach_the_screen(tmp_path):
  log = tmp_path / "run" / "libraries.log"
  done = run(str(log))
  assert done.returncode == 0, done.stderr
  screen = done.stderr.splitlines()
  assert len(screen) == 1 and screen[0].endswith("from the project")
  logged = log.read_text()
  for line in (
    "from C one",
    "from a library's print",
    "from C two",
  ):
    assert line in logged


def test_appends_to_existing_log(tmp_path):
  log = tmp_path / "libraries.log"
  log.write_text("of an earlier run\n")
  run(str(log))
  assert log.read_text().startswith("of an earlier run\n")


def test_shows_crash_in_a_library(tmp_path):
  done = run(str(tmp_path / "log"), "abort")
  assert done.returncode < 0
  assert "Fatal Python error: Aborted" in done.stderr
