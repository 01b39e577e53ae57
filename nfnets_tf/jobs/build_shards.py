"""The job that writes the shards of a source of images."""

from __future__ import annotations

import os

from nfnets_tf.data.dataset_info import INDEX
from nfnets_tf.data.shard_builder import ShardBuilder
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.train.dry_run import format_table
from nfnets_tf.train.run_dir import RunDir


class BuildShardsJob:
  """Writes shards and their index, or resumes an unfinished earlier call."""

  def __init__(self, *, builder: ShardBuilder):
    self.builder = builder

  def plan(self) -> str:
    """Describes what would be written."""
    return format_table(self.builder.describe())

  def run(self, context: RunContext) -> str:
    """Writes the shards that are not written yet.

    Returns:
      How many images each split holds, and how many were skipped.

    Raises:
      UserError: see `ShardBuilder.build`.
    """
    files = RunDir(context.workdir)
    self.builder.claim()
    files.write_config(context.config_text)
    context.on_start()
    index = self.builder.build()
    directory, skipped = self.builder.directory, index["left_out"]
    files.write_result({"directory": directory, **skipped})
    lines = self.builder.describe()
    for split, part in index["splits"].items():
      count, size = part["examples"], part["bytes"] / 1e6
      lines.append((f"{split} holds", f"{count:,} images, {size:,.1f} MB"))
    counts = {**skipped["faults"]}
    if self.builder.exclude is not None:
      counts["near-duplicates"] = len(skipped["near_duplicates"])
    lines += [("skipped", f"{n:,} {cause}") for cause, n in counts.items()]
    return format_table([*lines, ("index", os.path.join(directory, INDEX))])
