"""The compiler's own environment, and tasks that run in it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from nfnets_tf.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
DEFAULT = pathlib.Path("~/.cache/nfnets_tf/tpu_check")
_REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")
_LAST_LINES = 4


def setup(folder: pathlib.Path) -> None:
  """Makes the environment, or completes one.

  Raises:
    UserError: if pip cannot install the compiler.
  """
  if sys.version_info < (3, 11):
    raise UserError(
      f"Python {sys.version.split()[0]} cannot run the compiler's libraries;"
      " expected Python 3.11 or newer."
    )
  subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
  done = subprocess.run(
    [_python(folder), "-m", "pip", "install", "--quiet", "-r", _REQUIREMENTS],
    text=True,
    stderr=subprocess.PIPE,
  )
  if done.returncode:
    raise UserError(
      f"{folder} could not be completed"
      f" ({_last_lines(done.stderr)}); check the network and pip's index, or"
      " install tools/tpu_check/requirements.txt there by hand."
    )


def run_task(folder: pathlib.Path, task: str, request: dict) -> dict:
  """Runs a task of `compiler` in the environment.

  Args:
    folder: of the environment.
    task: "compile" or "run".
    request: JSON; `results` is the path that the task writes.

  Returns:
    The results of "compile", {} of "run".

  Raises:
    UserError: if the environment is missing or the task fails.
  """
  check(folder)
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary, "request.json")
    results = pathlib.Path(temporary, "results.json")
    path.write_text(json.dumps({"results": str(results), **request}))
    done = subprocess.run(
      [_python(folder), "-m", "tools.tpu_check.compiler", task, path],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      text=True,
      stderr=subprocess.PIPE,
    )
    if done.returncode:
      reason = _last_lines(done.stderr) or f"exit code {done.returncode}"
      if done.returncode == -9:
        reason = "it was killed, as happens when the host has too little memory"
      raise UserError(f"the compiler failed: {reason}.")
    return json.loads(results.read_text()) if task == "compile" else {}


def check(folder: pathlib.Path) -> None:
  """Raises a UserError unless the environment exists."""
  if not _python(folder).exists():
    raise UserError(
      f"the compiler's environment is not in {folder}; make it with `python -m"
      " tools.tpu_check setup`, or name another one by --environment."
    )


def _python(folder: pathlib.Path) -> pathlib.Path:
  return folder / "bin" / "python"


def _last_lines(text: str) -> str:
  lines = [line for line in text.splitlines() if line.strip()]
  return " ".join(lines[-_LAST_LINES:])[-800:].rstrip(".")
