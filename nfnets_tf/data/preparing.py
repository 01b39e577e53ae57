"""Shards made by Apache Beam: one task a shard, in-process or on a cluster.

Which image goes to which shard follows from the catalog and the seed alone, so
that a task needs no other, a finished one is not repeated, and shards are of
equal size to within one image (before bad ones and duplicates are left out).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.data.catalogs import Catalog
from nfnets_tf.data.duplicates import NearDuplicates, difference_hash
from nfnets_tf.data.preprocessing import decode
from nfnets_tf.data.tfrecords import Fields, shard_name, write_shard
from nfnets_tf.data.validation import RecordValidator
from nfnets_tf.errors import UserError, plain_message
from nfnets_tf.fileio import read_json

_NAMED = 3


class ShardTask(NamedTuple):
  """One shard to be written.

  Attributes:
    path: of the shard.
    sidecar: of the JSON file that says what was written; with it, the shard is
      finished.
    references: to the catalog's images, in order.
  """

  path: str
  sidecar: str
  references: Sequence


def plan_tasks(
  catalog: Catalog, directory: str, *, examples_per_shard: int, seed: int
) -> dict[str, list[ShardTask]]:
  """Returns the tasks of every split."""
  tasks = {}
  for number, (split, references) in enumerate(sorted(catalog.splits.items())):
    shards = max(1, -(-len(references) // examples_per_shard))
    order = np.random.default_rng([seed, number]).permutation(len(references))
    tasks[split] = [
      ShardTask(
        path := os.path.join(directory, shard_name(split, shard, shards)),
        f"{path}.json",
        [references[i] for i in order[shard::shards]],
      )
      for shard in range(shards)
    ]
  return tasks


def is_finished(task: ShardTask) -> bool:
  """Returns whether a shard is written, as its sidecar says."""
  written = read_sidecar(task)
  if written is None or not tf.io.gfile.exists(task.path):
    return False
  return tf.io.gfile.stat(task.path).length == written["bytes"]


def read_sidecar(task: ShardTask) -> dict | None:
  """Returns what was written of a task, None if nothing yet."""
  if not tf.io.gfile.exists(task.sidecar):
    return None
  return read_json(task.sidecar)


def check_runner(runner: str, options: Sequence[str]) -> None:
  """Checks that Beam is there and takes a runner; see `run_tasks`.

  Raises:
    UserError: if not.
  """
  try:  # seconds to import, and for this job alone
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(
      f"shards are written by Apache Beam, which is not installed ({error});"
      " run pip install 'nfnets_tf[prepare]'."
    ) from error
  try:
    beam.Pipeline(runner=runner, options=PipelineOptions(list(options)))
  except (ValueError, TypeError, ImportError, AttributeError) as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"Apache Beam does not take BuildShardsJob.runner = {runner!r} with"
      f" {list(options)} ({reason}); bind them to one of its runners and its"
      " options."
    ) from error


def run_tasks(
  catalog: Catalog,
  tasks: Sequence[ShardTask],
  *,
  without: Catalog | None,
  distance: int,
  runner: str,
  options: Sequence[str],
) -> None:
  """Writes shards.

  Args:
    catalog: what is written.
    tasks: the shards, finished ones left out.
    without: images that look like one of these are left out; or None.
    distance: bits of their hashes that may differ for that.
    runner: of Beam, such as "DirectRunner" or "DataflowRunner".
    options: of Beam, such as "--direct_num_workers=8".
  """
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  chosen = PipelineOptions(list(options), save_main_session=False)
  with beam.Pipeline(runner=runner, options=chosen) as pipeline:
    shards = pipeline | "Shards" >> beam.Create(tasks)
    shards |= "Spread shards" >> beam.Reshuffle()
    if without is None:
      _ = shards | "Write" >> beam.Map(write_task, catalog, None)
      return
    others = [image for part in without.splits.values() for image in part]
    hashes = (
      pipeline
      | "Others" >> beam.Create(others)
      | "Spread others" >> beam.Reshuffle()
      | "Hash" >> beam.FlatMap(_hashes, without)
      | beam.combiners.ToList()
      | "Table" >> beam.Map(NearDuplicates, distance)
    )
    known = beam.pvalue.AsSingleton(hashes)
    _ = shards | "Write" >> beam.Map(write_task, catalog, known)


def _hashes(reference, catalog: Catalog):
  """Yields the hash of an image, nothing if it cannot be used."""
  examine = RecordValidator(Fields(), None)
  try:
    record = catalog.read(reference)
  except (OSError, tf.errors.OpError):
    return
  # Whatever its label is.
  if examine(dataclasses.replace(record, label=0).serialize()) is None:
    yield difference_hash(decode(tf.constant(record.encoded)))


def write_task(
  task: ShardTask, catalog: Catalog, without: NearDuplicates | None
) -> None:
  """Writes one shard, then its sidecar.

  The sidecar is the shard's entry in the index, and under "faults" {cause:
  number} of the images left out, under "named" some of them, under "duplicates"
  the names of those that look like one of `without`.
  """
  classes = len(catalog.class_names)
  examine = RecordValidator(Fields(), classes)
  faults, named, duplicates = collections.Counter(), [], []

  def examples():
    for reference in task.references:
      try:
        record = catalog.read(reference)
      except (OSError, tf.errors.OpError) as error:
        faults["not readable"] += 1
        named.append(plain_message(error))
        continue
      serialized = record.serialize()
      if fault := examine(serialized):
        faults[fault.cause] += 1
        named.append(f"{record.filename}: {fault}")
      elif without and _looks_like(record.encoded, without):
        duplicates.append(record.filename)
      else:
        yield record.label, serialized

  entry = write_shard(task.path, examples())
  written = {
    **entry,
    "faults": faults,
    "named": named[:_NAMED],
    "duplicates": duplicates,
  }
  with tf.io.gfile.GFile(f"{task.sidecar}.partial", "w") as file:
    json.dump(written, file)
  tf.io.gfile.rename(f"{task.sidecar}.partial", task.sidecar, overwrite=True)


def _looks_like(encoded: bytes, without: NearDuplicates) -> bool:
  return difference_hash(decode(tf.constant(encoded))) in without
