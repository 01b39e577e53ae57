"""The job that turns a catalog of images into shards."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence

from nfnets_tf.data import preparing
from nfnets_tf.data.catalogs import Catalog
from nfnets_tf.data.dataset_info import INDEX
from nfnets_tf.data.duplicates import NearDuplicates
from nfnets_tf.data.listing import digest
from nfnets_tf.data.shard_folder import ShardFolder
from nfnets_tf.errors import require_fraction, require_int
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.train.dry_run import format_table
from nfnets_tf.train.run_dir import RunDir

LOGGER = logging.getLogger("nfnets_tf")

_SECONDS_A_LINE = 5.0


class BuildShardsJob:
  """Writes shards and their index; goes on where an earlier call stopped.

  Args:
    catalog: the images; out of `data.catalogs`.
    directory: of the shards, local or gs://; "~" is the home folder.
    examples_per_shard: at most; 100 to 200 MB a shard read well.
    seed: of the order of the images.
    without: images of `catalog` that look like one of these are left out; a
      catalog or None.
    distance: bits out of 64 in which the hashes of two images that look alike
      may differ.
    max_bad_share: of the images that may be unusable, in [0, 1].
    runner: of Apache Beam; "DirectRunner" is this process.
    runner_options: of that runner, such as "--project=...".
  """

  def __init__(
    self,
    *,
    catalog: Catalog,
    directory: str,
    examples_per_shard: int,
    seed: int,
    without: Catalog | None,
    distance: int,
    max_bad_share: float,
    runner: str,
    runner_options: Sequence[str],
  ):
    require_int("BuildShardsJob.examples_per_shard", examples_per_shard, 1)
    require_int("BuildShardsJob.seed", seed, 0)
    require_fraction("BuildShardsJob.max_bad_share", max_bad_share)
    NearDuplicates([], distance)  # raises where it cannot be used
    self.catalog = catalog
    self.directory = os.path.expanduser(directory)
    self.without, self.distance = without, distance
    self.max_bad_share = max_bad_share
    self.runner, self.runner_options = runner, tuple(runner_options)
    self._tasks = preparing.plan_tasks(
      catalog,
      self.directory,
      examples_per_shard=examples_per_shard,
      seed=seed,
    )
    made_of = catalog.key, examples_per_shard, seed
    if without is not None:
      made_of += without.key, distance
    self._folder = ShardFolder(
      self.directory, digest(repr(made_of)), self._tasks
    )

  def plan(self) -> str:
    """Returns what would be written."""
    return format_table(self._describe())

  def _describe(self) -> list[tuple[str, str]]:
    lines = [
      ("shards", self.directory),
      ("classes", f"{len(self.catalog.class_names):,}"),
      ("split by", self.catalog.rule),
    ]
    for split, tasks in self._tasks.items():
      images = sum(len(task.references) for task in tasks)
      lines.append((split, f"{images:,} images in {len(tasks):,} shards"))
    if self.without is not None:
      others = sum(map(len, self.without.splits.values()))
      lines.append(("without", f"what looks like one of {others:,} images"))
    lines.append(("runner", " ".join((self.runner, *self.runner_options))))
    return lines

  def run(self, context: RunContext) -> str:
    """Writes what is not written yet; see `train.TrainJob.run`.

    Raises:
      UserError: if Beam is not there, the folder holds something else, more
        images than `max_bad_share` are unusable, or none is left of a split;
        what was written stays.
    """
    files = RunDir(context.workdir)
    preparing.check_runner(self.runner, self.runner_options)
    self._folder.take()
    files.write_config(context.config_text)
    context.on_start()
    if (index := self._folder.read_split_info()) is None:
      self._write()
      index = self._folder.read_split_info()
    elif lost := self._folder.lost(index):
      LOGGER.info(
        "%d shards are missing or cut off; they are written again.", len(lost)
      )
      self._make(lost)
      self._folder.check_mended(index, lost)
    else:
      LOGGER.info("These shards are written already.")
    self._folder.clean()
    files.write_result({"directory": self.directory, **index["left_out"]})
    return self._summarize(index)

  def _write(self) -> None:
    tasks = [task for some in self._tasks.values() for task in some]
    left = [task for task in tasks if not preparing.is_finished(task)]
    if len(left) < len(tasks):
      LOGGER.info("%d shards are there already.", len(tasks) - len(left))
    self._make(left)
    if self._folder.read_split_info() is None:
      self._folder.conclude(self.catalog, max_bad_share=self.max_bad_share)

  def _make(self, tasks) -> None:
    """Writes shards, unless another process has just written all of them."""
    try:
      with _told(tasks):
        preparing.run_tasks(
          self.catalog,
          tasks,
          without=self.without,
          distance=self.distance,
          runner=self.runner,
          options=self.runner_options,
        )
    except Exception:
      # It tidies up when it is done, and our own parts with it.
      index = self._folder.read_split_info()
      if index is None or self._folder.lost(index):
        raise
      LOGGER.info("Another process has written the same shards meanwhile.")

  def _summarize(self, index) -> str:
    lines = self._describe()
    for split, part in index["splits"].items():
      count, size = part["examples"], part["bytes"] / 1e6
      lines.append((f"{split} holds", f"{count:,} images, {size:,.1f} MB"))
    out = index["left_out"]
    lines += [
      ("left out", f"{n:,} {what}") for what, n in out["faults"].items()
    ]
    if self.without is not None:
      count = len(out["near_duplicates"])
      lines.append(("left out", f"{count:,} near-duplicates"))
    return format_table(
      [*lines, ("index", os.path.join(self.directory, INDEX))]
    )


@contextlib.contextmanager
def _told(tasks):
  """Says every few seconds how many shards are written."""
  stopped = threading.Event()

  def tell():
    while not stopped.wait(_SECONDS_A_LINE):
      count = sum(map(preparing.is_finished, tasks))
      LOGGER.info("%d of %d shards written.", count, len(tasks))

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stopped.set()
    thread.join()
