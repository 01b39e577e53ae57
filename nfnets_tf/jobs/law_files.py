"""What the jobs that fit laws leave in their work directory."""

from __future__ import annotations

import json
import os

import tensorflow as tf

from nfnets_tf.fileio import report_write_errors, write_atomically
from nfnets_tf.jobs.job import RunContext


def begin(context: RunContext) -> None:
  """Makes the work directory and keeps the configuration in it."""
  with report_write_errors(context.workdir):
    tf.io.gfile.makedirs(context.workdir)
  context.on_start()
  path = os.path.join(context.workdir, "config.gin")
  write_atomically(path, context.config_text)


def write_json(workdir: str, content: dict) -> None:
  """Writes laws.json."""
  path = os.path.join(workdir, "laws.json")
  write_atomically(path, json.dumps(content, indent=1) + "\n")


def two_columns(lines: list[tuple[str, str]]) -> str:
  """Returns lines with their names in one column."""
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
