"""What the jobs that fit laws leave in their work directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.data.files import replace_file, writing


def begin(workdir: str, configuration: str, started: Callable) -> None:
  """Makes the folder, says so, and keeps the configuration."""
  with writing(workdir):
    tf.io.gfile.makedirs(workdir)
  started()
  replace_file(os.path.join(workdir, "config.gin"), configuration)


def write_json(workdir: str, content: dict) -> None:
  """Writes laws.json."""
  path = os.path.join(workdir, "laws.json")
  replace_file(path, json.dumps(content, indent=1) + "\n")


def two_columns(lines: list[tuple[str, str]]) -> str:
  """Returns lines with their names in one column."""
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
