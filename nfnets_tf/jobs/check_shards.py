"""The job that reads shards back and validates every record."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Sequence

import pandas as pd
import tensorflow as tf

from nfnets_tf.data.dataset_info import SplitInfo, read_split_info
from nfnets_tf.data.decoding import decode
from nfnets_tf.data.loading import parallel_calls
from nfnets_tf.data.tfrecords import Fields, read_features, read_records
from nfnets_tf.data.validation import InvalidRecord, RecordValidator
from nfnets_tf.errors import UserError, plain_message
from nfnets_tf.fileio import file_sha256, write_atomically
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.progress import counted
from nfnets_tf.ranges import (
  PATH,
  TEXT,
  accepts,
  built,
  each,
  integer,
  number,
  optional,
)
from nfnets_tf.train.dry_run import format_table
from nfnets_tf.train.run_dir import RunDir

LOGGER = logging.getLogger("nfnets_tf")

# Causes that make a whole shard invalid.
TRUNCATED = "shard truncated or corrupt"
CHANGED = "shard changed since it was written"
# Causes that are reported, though the record is valid.
DUPLICATE = "duplicate image"
TINY = "tiny image"


@dataclasses.dataclass
class ShardReport:
  """Result of checking one shard.

  Attributes:
    path: of the shard.
    records: number of records that could be read.
    counts: {cause: number of records}.
    first: the first problem and its record, "" if there is none.
    images: (position, hash, file name) of every valid image.
  """

  path: str
  records: int = 0
  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  first: str = ""
  images: list[tuple[int, bytes, str]] = dataclasses.field(default_factory=list)

  def add(self, problem: InvalidRecord, position: int | None = None) -> None:
    """Counts a problem of a record, or of the whole shard."""
    self.counts[problem.cause] += 1
    if not self.first:
      name = f" ({problem.name})" if problem.name else ""
      place = "" if position is None else f"record {position}{name}: "
      self.first = f"{place}{problem}"

  def add_duplicates(self, seen: dict[bytes, str]) -> None:
    """Counts images that occurred before, and forgets the shard's images.

    Args:
      seen: {hash: where it occurred first} of all earlier shards; is updated.
    """
    for position, key, name in self.images:
      place = f"{os.path.basename(self.path)}@{position}"
      if (first := seen.setdefault(key, place)) != place:
        self.add(InvalidRecord(DUPLICATE, name, f"of {first}"), position)
    self.images.clear()


def check_shard(
  path: str,
  expected: int | None = None,
  sha256: str | None = None,
  *,
  validate: RecordValidator,
  min_side: int,
) -> ShardReport:
  """Reads a shard and validates its records.

  Args:
    path: of the shard.
    expected: number of its records, if known.
    sha256: of the file, if known.
    validate: determines why a record is invalid.
    min_side: in pixels; images with a shorter side are tiny.

  Returns:
    Its report without duplicates; see `ShardReport.add_duplicates`.
  """
  report = ShardReport(path)
  if not tf.io.gfile.exists(path):
    report.add(InvalidRecord(TRUNCATED, detail="the file does not exist"))
    return report
  try:
    for serialized in read_records(path).as_numpy_iterator():
      _check_record(serialized, report, validate, min_side)
      report.records += 1
  except tf.errors.OpError as error:
    detail = plain_message(error)
    report.add(InvalidRecord(TRUNCATED, detail=detail), report.records)
    return report
  if expected is not None and report.records != expected:
    detail = f"{report.records} records, {expected} expected"
    report.add(InvalidRecord(TRUNCATED, detail=detail))
  elif sha256 is not None and file_sha256(path) != sha256:
    detail = "its SHA-256 differs from index.json"
    report.add(InvalidRecord(CHANGED, detail=detail))
  return report


def _check_record(serialized, report, validate, min_side: int) -> None:
  position = report.records
  if (problem := validate(serialized)) is not None:
    report.add(problem, position)
    return
  values = read_features(serialized, validate.fields)
  encoded, name = values.images[0], values.filename
  key = hashlib.sha256(encoded).digest()[:16]
  report.images.append((position, key, name))
  if validate.fields.raw:
    height, width = values.heights[0], values.widths[0]
  else:
    height, width, _ = decode(tf.constant(encoded)).shape
  if min(height, width) < min_side:
    detail = f"{height} x {width} pixels"
    report.add(InvalidRecord(TINY, name, detail), position)


@accepts(
  directory=PATH,
  splits=each(TEXT),
  fields=optional(built("@tfrecords.Fields()")),
  num_classes=optional(integer(1)),
  min_side=integer(0),
  max_invalid_fraction=number(0, 1),
)
class CheckShardsJob:
  """Validates every record of some splits.

  Args:
    directory: of the shards; "~" is the home folder.
    splits: names of the splits.
    fields: see `pipeline.Split`.
    num_classes: labels must be below it; None means the number of the index.
    min_side: in pixels; images with a shorter side are reported as tiny.
    max_invalid_fraction: fraction of the records that may be invalid, in
      [0, 1].
  """

  def __init__(
    self,
    *,
    directory: str,
    splits: Sequence[str],
    fields: Fields | None,
    num_classes: int | None,
    min_side: int,
    max_invalid_fraction: float,
  ):
    self.directory = os.path.expanduser(directory)
    self.splits = tuple(splits)
    self.fields, self.num_classes = fields, num_classes
    self.min_side = min_side
    self.max_invalid_fraction = max_invalid_fraction

  def plan(self) -> str:
    """Describes what would be read."""
    return format_table(
      [("shards", self.directory), ("splits", ", ".join(self.splits))]
    )

  def run(self, context: RunContext) -> str:
    """Reads all shards and writes WORKDIR/report/shards.csv.

    Returns:
      The number of valid records, and of each problem.

    Raises:
      UserError: if the shards cannot be trained on.
    """
    files = RunDir(context.workdir)
    infos = [
      read_split_info(self.directory, split, self.fields, check_sizes=False)
      for split in self.splits
    ]
    files.write_config(context.config_text)
    context.on_start()
    seen = {}
    reports = [x for info in infos for x in self._check_split(info, seen)]
    path = os.path.join(files.report, "shards.csv")
    tf.io.gfile.makedirs(files.report)
    write_atomically(path, _to_csv(reports))
    return self._summarize(reports, path)

  def _check_split(self, info: SplitInfo, seen: dict) -> list[ShardReport]:
    # Without an index the largest label is all that is known of the classes.
    known = info.num_classes if info.class_names else None
    check = functools.partial(
      check_shard,
      validate=RecordValidator(info.fields, self.num_classes or known),
      min_side=self.min_side,
    )
    checksums = info.checksums or [None] * len(info.files)
    reports = []
    with concurrent.futures.ThreadPoolExecutor(parallel_calls()) as pool:
      done = pool.map(check, info.files, info.counts, checksums)
      for report in counted(done, "Checking shards", len(info.files)):
        # In order, so that of two images always the same one is the duplicate.
        report.add_duplicates(seen)
        reports.append(report)
        if report.first:
          name = os.path.basename(report.path)
          LOGGER.warning("%s: %s.", name, report.first)
    return reports

  def _summarize(self, reports: Sequence[ShardReport], path: str) -> str:
    records = sum(report.records for report in reports)
    counts = sum((x.counts for x in reports), collections.Counter())
    text = ", ".join(f"{n:,} {cause}" for cause, n in counts.most_common())
    invalid = sum(counts.values()) - counts[DUPLICATE] - counts[TINY]
    if counts[TRUNCATED] or counts[CHANGED]:
      raise UserError(
        f"the shards in {self.directory!r} are damaged: {text}; restore the"
        " shards, or remove them and rerun the job that wrote them"
        f" ({path} lists them)."
      )
    if invalid > self.max_invalid_fraction * records:
      raise UserError(
        f"the shards in {self.directory!r} are invalid: {text}, of"
        f" {records:,} records, more than max_invalid_fraction ="
        f" {self.max_invalid_fraction:.2%}; write shards without them ({path}"
        " counts them by shard)."
      )
    return format_table(
      [
        ("usable", f"{records - invalid:,} of {records:,} records"),
        ("problems", text or "none"),
        ("by shard", path),
      ]
    )


def _to_csv(reports: Sequence[ShardReport]) -> str:
  causes = sorted({cause for report in reports for cause in report.counts})
  rows = [
    {
      "shard": os.path.basename(report.path),
      "records": report.records,
      **{cause: report.counts[cause] for cause in causes},
      "first": report.first,
    }
    for report in reports
  ]
  return pd.DataFrame(rows).to_csv(index=False)
