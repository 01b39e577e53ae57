"""Tasks that write one shard each, and runners for them.

Which image goes to which shard follows only from the source and the seed, so
that tasks are independent of each other: for threads or for Apache Beam.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.data.decoding import decode
from nfnets_tf.data.near_duplicates import NearDuplicates, difference_hash
from nfnets_tf.data.tfrecords import read_records, shard_name, write_shard
from nfnets_tf.errors import UserError, plain_message
from nfnets_tf.fileio import read_json, write_atomically
from nfnets_tf.progress import counted

if TYPE_CHECKING:
  from nfnets_tf.data.example_sources import ExampleSource

LOGGER = logging.getLogger("nfnets_tf")

_NAMED = 3
_HASHES_LOCK = threading.Lock()


class InProcess:
  """Runs tasks in threads of this process, as many as it has cores."""

  def __call__(self, function: Callable, tasks: Sequence) -> None:
    """Applies a function to every task, in any order."""
    pool = concurrent.futures.ThreadPoolExecutor()
    try:
      done = pool.map(function, tasks)
      for _ in counted(done, "Reading images, shard by shard", len(tasks)):
        pass
    finally:
      pool.shutdown(cancel_futures=True)

  def __str__(self):
    return "threads of this process"


class Beam:
  """Runs tasks as an Apache Beam pipeline, such as on Dataflow.

  Args:
    runner: name of one of Beam's runners.
    options: of that runner, such as "--project=...".

  Raises:
    UserError: if Beam is not installed or does not accept them.
  """

  def __init__(self, *, runner: str, options: Sequence[str] = ()):
    self._runner, self._options = runner, tuple(options)
    try:
      self._pipeline()
    except ModuleNotFoundError as error:
      raise UserError(
        f"shard_tasks.Beam needs Apache Beam, which is not installed"
        f" ({error}); run pip install 'nfnets_tf[prepare]'."
      ) from error
    except (ValueError, TypeError, ImportError, AttributeError) as error:
      reason = " ".join(str(error).split())
      raise UserError(
        f"shard_tasks.Beam.runner = {self._runner!r} with the options"
        f" {list(self._options)} is invalid ({reason}); expected one of Apache"
        " Beam's runners and its options."
      ) from error

  def __call__(self, function: Callable, tasks: Sequence) -> None:
    """Applies a function to every task, on any worker."""
    import apache_beam as beam

    with self._pipeline() as pipeline:
      shards = pipeline | beam.Create(tasks) | beam.Reshuffle()
      _ = shards | beam.Map(function)

  def _pipeline(self):
    import apache_beam as beam  # seconds to import
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(list(self._options), save_main_session=False)
    return beam.Pipeline(runner=self._runner, options=options)

  def __str__(self):
    return " ".join(("Apache Beam", self._runner, *self._options))


class ShardTask(NamedTuple):
  """One shard to write.

  Attributes:
    path: of the shard; next to it, PATH.json describes its content.
    references: to the images of the source, in order.
  """

  path: str
  references: Sequence

  @property
  def entry_path(self) -> str:
    """Path of the shard's entry in the index, kept until the index exists."""
    return f"{self.path}.json"

  def read_entry(self) -> dict | None:
    """Returns the entry, None if the shard is not written yet."""
    exists = tf.io.gfile.exists(self.entry_path)
    return read_json(self.entry_path) if exists else None

  def is_written(self, entry: Mapping | None) -> bool:
    """Returns whether the shard has the size that its entry states."""
    if entry is None or not tf.io.gfile.exists(self.path):
      return False
    return tf.io.gfile.stat(self.path).length == entry["bytes"]


def plan_tasks(
  source: ExampleSource,
  directory: str,
  *,
  examples_per_shard: int,
  seed: int | None,
) -> dict[str, list[ShardTask]]:
  """Deals the images of every split to shards of equal size to within one.

  See `shard_builder.ShardBuilder` for the arguments.
  """
  tasks = {}
  for number, (split, references) in enumerate(sorted(source.splits.items())):
    shards = max(1, -(-len(references) // examples_per_shard))
    order = np.arange(len(references))
    if seed is not None:
      order = np.random.default_rng([seed, number]).permutation(order)
    tasks[split] = [
      ShardTask(
        os.path.join(directory, shard_name(split, shard, shards)),
        [references[i] for i in order[shard::shards]],
      )
      for shard in range(shards)
    ]
  return tasks


def write_task(
  task: ShardTask,
  source: ExampleSource,
  validate: Callable,
  hash_files: tuple[str, ...] = (),
  distance: int = 0,
) -> None:
  """Writes one shard, then its entry.

  Beyond the index's, the entry has "faults", {cause: number of invalid images},
  "named", some of them, and "duplicates", the names of near-duplicates.

  Args:
    task: the shard.
    source: of its images.
    validate: returns why a serialized record is invalid, or None.
    hash_files: written by `write_hashes`, of the images to exclude.
    distance: see `NearDuplicates`.
  """
  invalid, named, duplicates = collections.Counter(), [], []
  with _HASHES_LOCK:  # the table of a large set takes seconds and much memory
    exclude = _read_hashes(hash_files, distance)

  def examples():
    for reference in task.references:
      try:
        record = source.read(reference)
      except (OSError, tf.errors.OpError) as error:
        invalid["not readable"] += 1
        named.append(plain_message(error))
        continue
      serialized = record.serialize()
      if reason := validate(serialized):
        invalid[reason.cause] += 1
        named.append(f"{record.filename}: {reason}")
      elif hash_files and _hash(record.encoded) in exclude:
        duplicates.append(record.filename)
      else:
        yield record.label, serialized

  entry = write_shard(task.path, examples())
  skipped = {
    "faults": invalid,
    "named": named[:_NAMED],
    "duplicates": duplicates,
  }
  write_atomically(task.entry_path, json.dumps({**entry, **skipped}))
  LOGGER.info("Wrote %s: %d examples.", entry["file"], entry["examples"])


def holds_images(
  task: ShardTask, source: ExampleSource, validate: Callable
) -> bool:
  """Returns whether a shard holds just the valid images of its task, in order.

  See `write_task` for the arguments.
  """
  records = read_records(task.path).as_numpy_iterator()
  expected = next(records, None)
  for reference in task.references:
    try:
      serialized = source.read(reference).serialize()
    except (OSError, tf.errors.OpError):
      continue
    if serialized == expected:
      expected = next(records, None)
    elif validate(serialized) is None:
      return False
  return expected is None


def write_hashes(
  task: ShardTask, source: ExampleSource, validate: Callable
) -> None:
  """Writes the hashes of valid images to `task.path`, whatever their labels.

  See `write_task` for the arguments.
  """
  hashes = []
  for reference in task.references:
    try:
      record = source.read(reference)
    except (OSError, tf.errors.OpError):
      continue
    if validate(dataclasses.replace(record, label=0).serialize()) is None:
      hashes.append(_hash(record.encoded))
  write_atomically(task.path, json.dumps({"hashes": hashes}))


@functools.lru_cache(maxsize=1)  # once per worker, not once per shard
def _read_hashes(paths: tuple[str, ...], distance: int) -> NearDuplicates:
  hashes = (read_json(path)["hashes"] for path in paths)
  return NearDuplicates(itertools.chain.from_iterable(hashes), distance)


def _hash(encoded: bytes) -> int:
  return difference_hash(decode(tf.constant(encoded)))
