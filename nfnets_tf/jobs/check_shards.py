"""The job that reads shards back and says whether they can be trained on."""

from __future__ import annotations

import collections
import concurrent.futures
import csv
import io
import logging
import os
from collections.abc import Sequence

import tensorflow as tf

from nfnets_tf.data import checking
from nfnets_tf.data.dataset_info import SplitInfo, read_split_info
from nfnets_tf.data.loading import parallel_calls
from nfnets_tf.data.preprocessing import MAX_PIXELS
from nfnets_tf.data.tfrecords import Fields
from nfnets_tf.data.validation import InvalidRecord, RecordValidator
from nfnets_tf.errors import UserError, require_fraction
from nfnets_tf.fileio import write_atomically
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.train.dry_run import format_table
from nfnets_tf.train.run_dir import RunDir

LOGGER = logging.getLogger("nfnets_tf")


class CheckShardsJob:
  """Checks every record of some splits.

  Args:
    directory: of the shards; "~" is the home folder.
    splits: names of the splits.
    fields: see `pipeline.Split`.
    num_classes: labels are below it; None is the number of the index.
    min_side: images with a shorter side are told as tiny, in pixels.
    max_bad_share: of the records that may be unusable, in [0, 1].
  """

  def __init__(
    self,
    *,
    directory: str,
    splits: Sequence[str],
    fields: Fields | None,
    num_classes: int | None,
    min_side: int,
    max_bad_share: float,
  ):
    require_fraction("CheckShardsJob.max_bad_share", max_bad_share)
    self.directory = os.path.expanduser(directory)
    self.splits = tuple(splits)
    self.fields, self.num_classes = fields, num_classes
    self.min_side, self.max_bad_share = min_side, max_bad_share

  def plan(self) -> str:
    """Returns what would be read."""
    return format_table(
      [("shards", self.directory), ("splits", ", ".join(self.splits))]
    )

  def run(self, context: RunContext) -> str:
    """Reads all shards and writes WORKDIR/report/shards.csv.

    Returns:
      The numbers of all faults, and where to find more.

    Raises:
      UserError: if the shards cannot be used.
    """
    files = RunDir(context.workdir)
    indexes = [
      read_split_info(self.directory, split, self.fields, check_sizes=False)
      for split in self.splits
    ]
    files.write_config(context.config_text)
    context.on_start()
    seen = {}
    findings = [one for index in indexes for one in self._check(index, seen)]
    path = os.path.join(files.report, "shards.csv")
    tf.io.gfile.makedirs(files.report)
    write_atomically(path, _to_csv(findings))
    return self._judge(findings, path)

  def _check(self, index: SplitInfo, seen) -> list[checking.ShardFindings]:
    named = bool(index.class_names)
    classes = self.num_classes or (index.num_classes if named else None)
    checker = checking.Checker(
      RecordValidator(index.fields, classes, MAX_PIXELS), min_side=self.min_side
    )
    findings = []
    with concurrent.futures.ThreadPoolExecutor(parallel_calls()) as pool:
      sums = index.checksums or [None] * len(index.files)
      for found in pool.map(checker, index.files, index.counts, sums):
        # In order, so that of two images always the same one is the second.
        checking.mark_duplicates(found, seen)
        findings.append(found)
        for position, fault in found.named[:1]:
          place = [os.path.basename(found.path), _place(position, fault)]
          LOGGER.warning(
            "%s%s: %s.",
            ", ".join(filter(None, place)),
            f" ({fault.name})" if fault.name else "",
            fault,
          )
    return findings

  def _judge(self, findings, path: str) -> str:
    records = sum(found.records for found in findings)
    counts = collections.Counter()
    for found in findings:
      counts.update(found.counts)
    text = ", ".join(f"{n:,} {cause}" for cause, n in counts.most_common())
    bad = sum(
      n for cause, n in counts.items() if cause not in checking.HARMLESS
    )
    if any(counts[cause] for cause in checking.OF_SHARDS):
      raise UserError(
        f"the shards in {self.directory!r} cannot be used: {text}; restore the"
        " shards, or remove them and start the job that wrote them again"
        f" ({path} says which)."
      )
    if bad > self.max_bad_share * records:
      raise UserError(
        f"the shards in {self.directory!r} cannot be used: {text}, of"
        f" {records:,} records, and at most {self.max_bad_share:.2%} may be"
        f" bad; write shards without them ({path} counts them by shard)."
      )
    return format_table(
      [
        ("usable", f"{records - bad:,} of {records:,} records"),
        ("faults", text or "none"),
        ("by shard", path),
      ]
    )


def _to_csv(findings) -> str:
  causes = sorted({cause for found in findings for cause in found.counts})
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["shard", "records", *causes, "first"])
  for found in findings:
    counts = [found.counts[cause] for cause in causes]
    first = [
      ": ".join(filter(None, (_place(position, fault), str(fault))))
      for position, fault in found.named[:1]
    ]
    first = first or [""]
    name = os.path.basename(found.path)
    writer.writerow([name, found.records, *counts, *first])
  return text.getvalue()


def _place(position: int, fault: InvalidRecord) -> str:
  """Returns "record N", or nothing if the whole shard is meant."""
  cause = fault.cause
  whole = cause == checking.CHANGED or (cause == checking.CUT and not position)
  return "" if whole else f"record {position}"
