"""Where gin files lie, and which line of them set what."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Mapping, Sequence

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes
from nfnets_tf.train.workdir import run_folder

ROOT = pathlib.Path(__file__).parents[2]

_OF_RUN = "config.Launch.of_run"
_INCLUDE = re.compile(r"^include\s+['\"](.+?)['\"]", re.MULTILINE)
_BINDING = re.compile(r"^(\s*)([\w./]+)\s*(?:=|:\s*(?:#.*)?$)")


def known_files() -> list[str]:
  """Returns the project's own gin files."""
  found = (ROOT / "gin").rglob("*.gin")
  return [path.relative_to(ROOT).as_posix() for path in found]


def find(path: str) -> pathlib.Path | None:
  """Returns a gin file, here or in the project, None if there is none."""
  for candidate in (pathlib.Path(path), ROOT / path):
    if candidate.is_file():
      return candidate
  return None


def includes_of(path: str) -> list[str]:
  """Returns the files that a gin file includes by itself."""
  return _INCLUDE.findall(find(path).read_text())


def places(
  gin_files: Sequence[str], gin_params: Sequence[str]
) -> dict[str, str]:
  """Returns {left side: where it was last set}, followed through includes."""
  found = {}

  def read(path):
    block = None
    for number, line in enumerate(find(path).read_text().splitlines(), 1):
      if match := _INCLUDE.match(line):
        read(match[1])
      elif match := _BINDING.match(line):
        indent, left = match.groups()
        if line.split("#")[0].rstrip().endswith(":"):
          block = left
        else:
          full = f"{block}.{left}" if indent and block else left
          found[full] = f"{path}, line {number}"

  for path in gin_files:
    read(path)
  for param in gin_params:
    left = param.split("=")[0].strip()
    found[left] = f"--gin_param={param!r}"
  return found


def base_run(statements: Mapping[str, str]) -> tuple[str | None, str]:
  """Returns the work directory that `of_run` points into, and its config.gin.

  Args:
    statements: of the gin files that were given.

  Returns:
    (None, "") where no run is asked for, or none is found and none is needed.

  Raises:
    UserError: if it is no path, or neither its folder nor the gin files
      configure a run.
  """
  value = statements.get(_OF_RUN, "None")
  for _ in statements:  # a macro may be another one's value
    if value.startswith("%"):
      value = statements.get(value[1:], "None")  # unset: it is told later
  if value == "None":
    return None, ""
  try:
    path = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    path = None
  if not isinstance(path, str):
    raise UserError(
      f"{value} is no checkpoint; expected a path in quotes, such as"
      " 'runs/quickstart'."
    )
  if folder := run_folder(path):
    return folder, read_bytes(f"{folder}/config.gin").decode()
  if "train.TrainJob.network" not in statements:
    raise UserError(
      f"{path!r} lies in no run's work directory, where a config.gin would say"
      " what its network and its data are; name a run's gin file before this"
      " one, such as --gin_file=gin/finetune_imagenet.gin."
    )
  return None, ""
