"""The job that turns a catalog of images into shards."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TextIO

import tensorflow as tf

from nfnets_tf.data import preparing
from nfnets_tf.data.catalogs import Catalog
from nfnets_tf.data.listing import digest
from nfnets_tf.data.records import (
  INDEX,
  UNFINISHED,
  describe_split,
  write_index,
)
from nfnets_tf.ops.errors import UserError
from nfnets_tf.train.plan import table
from nfnets_tf.train.workdir import Workdir, replace_file

LOGGER = logging.getLogger("nfnets_tf")

_SECONDS_A_LINE = 5.0


class Preparation:
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
    if not isinstance(examples_per_shard, int) or examples_per_shard < 1:
      raise UserError(
        f"Preparation.examples_per_shard = {examples_per_shard!r} cannot be"
        " used; bind it to a whole number of at least 1."
      )
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
    self._key = digest(repr(made_of))

  def plan(self) -> str:
    """Returns what would be written."""
    return table(self._describe())

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

  def run(
    self,
    workdir: str,
    *,
    configuration: str,
    terminal: TextIO | None,
    started: Callable[[], None] = lambda: None,
  ) -> str:
    """Writes what is not written yet; see `run.Training.run`.

    Raises:
      UserError: if the folder holds something else, or more images than
        `max_bad_share` are unusable; what was written stays.
    """
    del terminal  # lines say all there is
    files = Workdir(workdir)
    self._check_directory()
    files.keep_configuration(configuration)
    started()
    if tf.io.gfile.exists(os.path.join(self.directory, INDEX)):
      LOGGER.info("These shards are written already.")
    else:
      self._write()
    self._clean()
    with tf.io.gfile.GFile(os.path.join(self.directory, INDEX)) as file:
      index = json.load(file)
    files.write_result({"directory": self.directory, **index["left_out"]})
    return self._summarize(index)

  def _check_directory(self) -> None:
    """Takes the folder, unless it is that of something else."""
    for name in (INDEX, UNFINISHED):
      path = os.path.join(self.directory, name)
      if not tf.io.gfile.exists(path):
        continue
      with tf.io.gfile.GFile(path) as file:
        key = json.load(file).get("key")
      if key != self._key:
        raise UserError(
          f"{self.directory!r} holds shards of other images or settings"
          f" ({name}); bind Preparation.directory to another folder, or remove"
          " this one."
        )
      return
    tf.io.gfile.makedirs(self.directory)
    begun = os.path.join(self.directory, UNFINISHED)
    replace_file(begun, json.dumps({"key": self._key}) + "\n")

  def _write(self) -> None:
    tasks = [task for some in self._tasks.values() for task in some]
    left = [task for task in tasks if not preparing.is_finished(task)]
    if len(left) < len(tasks):
      LOGGER.info("%d shards are there already.", len(tasks) - len(left))
    with _told(left):
      preparing.run_tasks(
        self.catalog,
        left,
        without=self.without,
        distance=self.distance,
        runner=self.runner,
        options=self.runner_options,
      )
    written = {
      split: [preparing.read_sidecar(task) for task in some]
      for split, some in self._tasks.items()
    }
    self._write_index(written)

  def _clean(self) -> None:
    """Removes what lay beside the shards, killed writers' parts included."""
    for pattern in ("*.tfrecord.json", "*.partial*", UNFINISHED):
      path = os.path.join(self.directory, pattern)
      for name in tf.io.gfile.glob(path):
        tf.io.gfile.remove(name)

  def _write_index(self, written) -> None:
    shards = [shard for some in written.values() for shard in some]
    faults = collections.Counter()
    for shard in shards:
      faults.update(shard["faults"])
    duplicates = [name for shard in shards for name in shard["duplicates"]]
    images = sum(map(len, self.catalog.splits.values()))
    bad = sum(faults.values())
    if bad > self.max_bad_share * images:
      named = [name for shard in shards for name in shard["named"]]
      raise UserError(
        f"{bad:,} of {images:,} images cannot be used, more than"
        f" max_bad_share = {self.max_bad_share:.2%}:"
        f" {', '.join(f'{n:,} {cause}' for cause, n in faults.items())}, such"
        f" as {'; '.join(named[:3])}; repair or remove them and write to"
        " another folder, or bind a larger share."
      )
    classes = self.catalog.class_names
    write_index(
      self.directory,
      {
        "format": 2,
        "key": self._key,
        "class_names": list(classes),
        "rule": self.catalog.rule,
        "left_out": {"faults": faults, "near_duplicates": duplicates},
        "splits": {
          split: describe_split(some, len(classes))
          for split, some in written.items()
        },
      },
    )

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
    return table([*lines, ("index", os.path.join(self.directory, INDEX))])


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
