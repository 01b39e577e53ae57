"""Writes the shards of a source of examples, and their index.

A finished shard is never written twice, several processes may write the same
shards at the same time, and a lost one is written again with the same bytes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from nfnets_tf.data.dataset_info import (
  INDEX,
  UNFINISHED,
  describe_split,
  write_index,
)
from nfnets_tf.data.image_folder import digest
from nfnets_tf.data.near_duplicates import MAX_DISTANCE
from nfnets_tf.data.shard_tasks import (
  Beam,
  InProcess,
  ShardTask,
  holds_images,
  plan_tasks,
  write_hashes,
  write_task,
)
from nfnets_tf.data.tfrecords import Fields
from nfnets_tf.data.validation import RecordValidator
from nfnets_tf.errors import (
  RunError,
  UserError,
  plain_message,
)
from nfnets_tf.fileio import file_sha256, read_json, write_atomically
from nfnets_tf.progress import counted
from nfnets_tf.ranges import (
  PATH,
  SEED,
  accepts,
  built,
  integer,
  number,
  optional,
  transform,
)

if TYPE_CHECKING:
  from nfnets_tf.data.example_sources import ExampleSource

LOGGER = logging.getLogger("nfnets_tf")

_HASHES_PER_FILE = 4096
_NAMED = 3


@accepts(
  source=built("@image_folder.ImageFolder()"),
  directory=PATH,
  exclude=optional(built("@image_folder.ImageFolder()")),
  runner=transform("@shard_tasks.InProcess()"),
  examples_per_shard=integer(1),
  seed=optional(SEED),
  max_hash_distance=integer(0, MAX_DISTANCE),
  max_invalid_fraction=number(0, 1),
)
class ShardBuilder:
  """Writes the shards of a source into a directory that belongs to them.

  Called, it prepares the data of a run: shards that exist are used as they are.

  Args:
    source: of the images.
    directory: of the shards, local or gs://; "~" is the home folder.
    examples_per_shard: at most; 100 to 200 MB per shard read well.
    seed: of the order of the images; None keeps the source's.
    exclude: source of images whose near-duplicates are skipped, or None.
    max_hash_distance: bits out of 64 in which the hashes of near-duplicates may
      differ, from 0 to 15.
    max_invalid_fraction: fraction of the images that may be invalid, in [0, 1];
      they are skipped.
    runner: `InProcess()` or `Beam(...)`.
  """

  def __init__(
    self,
    *,
    source: ExampleSource,
    directory: str,
    examples_per_shard: int,
    seed: int | None,
    exclude: ExampleSource | None,
    max_hash_distance: int,
    max_invalid_fraction: float,
    runner: InProcess | Beam,
  ):
    self.source, self.exclude, self.runner = source, exclude, runner
    self.directory = os.path.expanduser(directory)
    self.max_invalid_fraction = max_invalid_fraction
    self._max_hash_distance = max_hash_distance
    self._examples_per_shard, self._seed = examples_per_shard, seed

  @functools.cached_property
  def key(self) -> str:
    """Changes with the images and with every setting of the shards."""
    made_of = self.source.key, self._examples_per_shard, self._seed
    if self.exclude is not None:
      made_of += self.exclude.key, self._max_hash_distance
    return digest(repr(made_of))

  @functools.cached_property
  def tasks(self) -> dict[str, list[ShardTask]]:
    """The shards of every split."""
    return plan_tasks(
      self.source,
      self.directory,
      examples_per_shard=self._examples_per_shard,
      seed=self._seed,
    )

  def describe(self) -> list[tuple[str, str]]:
    """Returns lines about what would be written."""
    lines = [
      ("shards", self.directory),
      ("classes", f"{len(self.source.class_names):,}"),
      ("split by", self.source.split_rule),
    ]
    for split, tasks in self.tasks.items():
      images = sum(len(task.references) for task in tasks)
      lines.append((split, f"{images:,} images in {len(tasks):,} shards"))
    if self.exclude is not None:
      images = sum(map(len, self.exclude.splits.values()))
      lines.append(("excluded", f"near-duplicates of {images:,} images"))
    return [*lines, ("runner", str(self.runner))]

  def __call__(self) -> bool:
    """Writes the shards unless the directory has an index already.

    Shards of other settings, or of an older version, are used as they are; of
    the builder's own shards, lost ones are written again.

    Returns:
      Whether anything was written.

    Raises:
      UserError: see `build`.
    """
    index = self._read(INDEX)
    if index is not None and (
      index.get("key") != self.key or not self._missing(index)
    ):
      return False
    self.claim()
    try:
      self.build()
    except UserError:
      if index is None:
        # Never resumed: repaired images have another key.
        tf.io.gfile.rmtree(self.directory)
      raise
    return True

  def claim(self) -> None:
    """Marks the directory as that of these shards, before anything is written.

    Raises:
      UserError: if it holds anything else or cannot be written.
    """
    path = os.path.join(self.directory, UNFINISHED)
    try:
      tf.io.gfile.makedirs(self.directory)
      # Before the look for a mark: another process may be building the same.
      listed = tf.io.gfile.listdir(self.directory)
      names = sorted(x for x in listed if not x.startswith(UNFINISHED))
      if self._is_claimed():
        return
      if names:
        raise UserError(
          f"{self.directory!r} holds other files, such as {names[0]!r}, and"
          " nothing is overwritten; bind DATA_DIR to a new or empty folder."
        )
      write_atomically(path, json.dumps({"key": self.key}))
    except (RunError, tf.errors.OpError) as error:
      raise UserError(
        f"{self.directory!r} cannot be written ({plain_message(error)}); bind"
        " DATA_DIR to a folder that can be created and written."
      ) from error

  def _is_claimed(self) -> bool:
    """Returns whether the directory is that of these shards, False if new."""
    # In this order: the mark goes when there is an index.
    for name in (UNFINISHED, INDEX):
      if (content := self._read(name)) is None:
        continue
      if content.get("key") == self.key:
        return True
      if name == INDEX and self._is_written_from_copies(content):
        write_index(self.directory, {**content, "key": self.key})
        return True
      what = "shards of other images or settings (%s)"
      if name == UNFINISHED:
        what = f"unfinished {what} or of images with other times"
      raise UserError(
        f"{self.directory!r} holds {what % name}; bind DATA_DIR to another"
        " folder, or remove this one."
      )
    return False

  def _is_written_from_copies(self, index: Mapping) -> bool:
    """Returns whether all shards hold just these images, in these settings.

    The key follows from the times of files: it changes when they are copied.
    """
    tasks = list(itertools.chain.from_iterable(self.tasks.values()))
    names = {os.path.basename(task.path) for task in tasks}
    if (
      self.exclude is not None
      or tuple(index["class_names"]) != tuple(self.source.class_names)
      or names != set(_entries_by_file(index))
      or self._missing(index)
    ):
      return False
    LOGGER.info("Comparing the shards in %s with the images.", self.directory)
    compare = functools.partial(
      holds_images,
      source=self.source,
      validate=RecordValidator(Fields(), len(self.source.class_names)),
    )
    try:
      with concurrent.futures.ThreadPoolExecutor() as pool:
        same = pool.map(compare, tasks)
        text = "Comparing images, shard by shard"
        return all(counted(same, text, len(tasks)))
    except tf.errors.OpError:  # of a corrupt shard
      return False

  def build(self) -> dict:
    """Writes the missing shards, and the index once all shards are there.

    Returns:
      The index.

    Raises:
      UserError: see `claim`; or if more images than `max_invalid_fraction` are
        invalid, no image of a split is left, or a lost shard's images have
        changed. What was written stays, and a later call resumes.
    """
    self.claim()
    index = self._read(INDEX)
    missing = self._missing(index)
    if not missing and index is not None:
      LOGGER.info("All shards in %s are written already.", self.directory)
    elif index is not None:
      LOGGER.info("Writing %d lost or truncated shards again.", len(missing))
    elif len(missing) < (total := sum(map(len, self.tasks.values()))):
      LOGGER.info("Resuming: %d of %d shards to write.", len(missing), total)
    if missing:
      self._write(missing)
    if index is None:
      index = self._read(INDEX) or self._conclude()
    else:
      self._check_rewritten(index, missing)
    self._clean()
    return index

  def _read(self, name: str) -> dict | None:
    try:
      return read_json(os.path.join(self.directory, name))
    except tf.errors.NotFoundError:
      return None

  def _missing(self, index: Mapping | None) -> list[ShardTask]:
    """Returns the tasks of shards that are not written, or lost since."""
    entries = _entries_by_file(index or {"splits": {}})
    return [
      task
      for task in itertools.chain.from_iterable(self.tasks.values())
      if not task.is_written(
        entries[os.path.basename(task.path)] if index else task.read_entry()
      )
    ]

  def _write(self, tasks: Sequence[ShardTask]) -> None:
    try:
      write = functools.partial(
        write_task,
        source=self.source,
        validate=RecordValidator(Fields(), len(self.source.class_names)),
        hash_files=() if self.exclude is None else self._hash_excluded(),
        distance=self._max_hash_distance,
      )
      self.runner(write, tasks)
    except Exception:
      # A process that finishes first removes temporary files, ours as well.
      index = self._read(INDEX)
      if index is None or self._missing(index):
        raise
      LOGGER.info("Another process has written the same shards.")

  def _hash_excluded(self) -> tuple[str, ...]:
    """Hashes the images to exclude; returns the paths of their hashes."""
    splits = self.exclude.splits.values()
    references = list(itertools.chain.from_iterable(splits))
    tasks = [
      ShardTask(
        os.path.join(self.directory, f"exclude-{first}.tfrecord.json"),
        references[first : first + _HASHES_PER_FILE],
      )
      for first in range(0, len(references), _HASHES_PER_FILE)
    ]
    pending = [task for task in tasks if not tf.io.gfile.exists(task.path)]
    write = functools.partial(
      write_hashes,
      source=self.exclude,
      validate=RecordValidator(Fields(), None),
    )
    self.runner(write, pending)
    return tuple(task.path for task in tasks)

  def _check_rewritten(self, index, tasks: Sequence[ShardTask]) -> None:
    entries = _entries_by_file(index)
    for task in tasks:
      name = os.path.basename(task.path)
      if file_sha256(task.path) != entries[name]["sha256"]:
        raise UserError(
          f"the shard {task.path!r} was written again and differs from what"
          f" {INDEX} states: the images have changed; write all of them to"
          " another folder."
        )

  def _conclude(self) -> dict:
    """Writes the index of shards that are all written; returns it."""
    written = {
      split: [task.read_entry() for task in tasks]
      for split, tasks in self.tasks.items()
    }
    entries = list(itertools.chain.from_iterable(written.values()))
    if None in entries and (index := self._read(INDEX)) is not None:
      return index  # another process has concluded and cleaned up
    invalid = sum(
      (collections.Counter(entry["faults"]) for entry in entries),
      collections.Counter(),
    )
    self._check_invalid(
      invalid, [x for entry in entries for x in entry["named"]]
    )
    duplicates = [name for entry in entries for name in entry["duplicates"]]
    for split, some in written.items():
      if not any(entry["examples"] for entry in some):
        raise UserError(
          f"no image of the {split!r} split is left: {len(duplicates):,} are"
          " near-duplicates of shard_builder.ShardBuilder.exclude and"
          f" {sum(invalid.values()):,} are invalid; bind other images, and"
          " DATA_DIR to another folder."
        )
    classes = self.source.class_names
    index = {
      "format": 2,
      "key": self.key,
      "class_names": list(classes),
      "rule": self.source.split_rule,
      # The keys of format 2, which existing shards have.
      "left_out": {"faults": invalid, "near_duplicates": duplicates},
      "splits": {
        split: describe_split(some, len(classes))
        for split, some in written.items()
      },
    }
    write_index(self.directory, index)
    return index

  def _check_invalid(self, invalid: collections.Counter, named) -> None:
    images = sum(map(len, self.source.splits.values()))
    count = sum(invalid.values())
    if count > self.max_invalid_fraction * images:
      causes = ", ".join(f"{n:,} {cause}" for cause, n in invalid.items())
      raise UserError(
        f"{count:,} of {images:,} images are invalid, more than"
        f" max_invalid_fraction = {self.max_invalid_fraction:.2%}: {causes},"
        f" such as {'; '.join(named[:_NAMED])}; repair or remove them and write"
        " to another folder, or bind"
        " shard_builder.ShardBuilder.max_invalid_fraction to a larger fraction"
        " to skip them."
      )

  def _clean(self) -> None:
    """Removes everything but shards and index, also of killed processes."""
    for name in tf.io.gfile.listdir(self.directory):
      if (
        name == UNFINISHED
        or ".partial" in name
        or name.endswith(".tfrecord.json")
      ):
        # Another process may be cleaning up as well.
        with contextlib.suppress(tf.errors.NotFoundError):
          tf.io.gfile.remove(os.path.join(self.directory, name))


def _entries_by_file(index: Mapping) -> dict[str, dict]:
  parts = index["splits"].values()
  return {shard["file"]: shard for part in parts for shard in part["shards"]}
