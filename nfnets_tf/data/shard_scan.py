"""Shards without an index: which files they are, and what they hold.

The names of shards say how many there are, so a missing one is noticed. Their
records are read through once; the result is cached until a file changes.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.data.file_listing import is_local
from nfnets_tf.data.tfrecords import (
  Fields,
  describe_features,
  describe_label,
  read_features,
  read_records,
)
from nfnets_tf.errors import RunError, UserError, plain_message
from nfnets_tf.fileio import read_json, write_atomically
from nfnets_tf.progress import counted

LOGGER = logging.getLogger("nfnets_tf")

# A class number beyond this is more likely to be some other number.
MAX_CLASSES = 1_000_000

_CACHE = "~/.cache/nfnets_tf/scans"
_VERSION = 2  # of the cache's content
_RECORD_ENDING = re.compile(r"\.(tf_?records?|tfrec|records?)$", re.IGNORECASE)
# Endings of copies, unfinished transfers, compressed files and notes on shards.
_NO_SHARD = re.compile(
  r".*(~|\.(bak|backup|old|orig|te?mp|part|partial|crdownload|download|filepart"
  r"|swp|lock|crc|md5|sha\d*|json|txt|csv|tsv|idx|index|log|ya?ml|md|gz|zip|bz2"
  r"|xz|zst|lz4|tar|tgz)(\W.*)?|\(\d+\).*|[ _-]copy.*)",
  re.IGNORECASE,
)


class Scan(NamedTuple):
  """What the shards of a split hold.

  Attributes:
    files: paths of the shards.
    counts: number of examples in each shard.
    labels: {class number: number of examples}.
    hashes: SHA-256 of the records of each shard, in hexadecimal.
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  labels: dict[int, int]
  hashes: tuple[str, ...]


def scan_shards(directory: str, split: str, fields: Fields) -> Scan:
  """Reads the shards of a split through, or what an earlier call cached.

  Raises:
    UserError: if a shard is missing, there are several sets of shards, or a
      record has no label.
  """
  files = find_shards(directory, split)
  key = _key(files, fields)
  cache = os.path.join(os.path.expanduser(_CACHE), f"{key}.json")
  if tf.io.gfile.exists(cache):
    scanned = read_json(cache)
  else:
    LOGGER.info(
      "Counting the records of %d shards in %s.", len(files), directory
    )
    scanned = _read_shards(files, fields)
    try:
      tf.io.gfile.makedirs(os.path.dirname(cache))
      write_atomically(cache, json.dumps(scanned))
    except (RunError, tf.errors.OpError) as error:
      LOGGER.warning("The record counts are not cached: %s", error)
  return Scan(
    tuple(files),
    tuple(scanned["counts"]),
    {int(label): count for label, count in scanned["labels"].items()},
    tuple(scanned["hashes"]),
  )


def find_shards(directory: str, split: str) -> list[str]:
  """Returns the paths of the shards of a split, sorted.

  Raises:
    UserError: if there are none, one is missing, or there are several sets.
  """
  # A pattern would give brackets in the path a meaning.
  names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
  named = [x for x in names if re.match(rf"{re.escape(split)}[-._]", x)]
  shards = _numbered_set(directory, split, named)
  if not shards:
    shards = [
      name
      for name in named
      if (name.startswith(f"{split}-") or _RECORD_ENDING.search(name))
      and not _NO_SHARD.fullmatch(name)
      and not tf.io.gfile.isdir(os.path.join(directory, name))
    ]
    _warn_of_gaps(directory, shards)
  if not shards:
    others = named or names
    holds = f"it holds {', '.join(others[:3])}" if names else "it is empty"
    raise UserError(
      f"the data folder {directory!r} has no {split}-* shards ({holds}); bind"
      f" {_other_name(split, names)}DATA_DIR to a folder of TFRecord shards,"
      " which are not compressed."
    )
  if others := sorted(set(named) - set(shards)):
    LOGGER.warning(
      "Ignored %d files of %r that are no shards, such as %r.",
      len(others),
      directory,
      others[0],
    )
  return [os.path.join(directory, name) for name in shards]


def _other_name(split: str, names: Sequence[str]) -> str:
  """Returns the advice to bind a held-out split's usual name, or ""."""
  usual = re.compile(r"(validation|valid|val|test|eval|dev)[-._].*")
  found = [
    match[1]
    for match in map(usual.fullmatch, names)
    if match and not _NO_SHARD.fullmatch(match[0])
  ]
  if split != "heldout" or not found:
    return ""
  # Of several, the last is "validation" or the like.
  return f"heldout/pipeline.Split.split = {found[-1]!r}, or "


def _numbered_set(
  directory: str, split: str, names: Sequence[str]
) -> list[str]:
  """Returns the names of the one whole set of shards called N-of-M, if any."""
  pattern = rf"({re.escape(split)}[-._].*?)(\d+)([-_]of[-_])(\d+)(\D.*)?"
  sets, others = {}, []
  for name in names:
    match = re.fullmatch(pattern, name)
    if match is None:
      others.append(name)
    elif not _NO_SHARD.fullmatch(match[5] or ""):
      start, number, of, total, end = match.groups("")
      numbered = sets.setdefault((start, of, total, end), {})
      numbered.setdefault(int(number), []).append(name)
  # Temporary files of other tools may end in anything.
  usual = [form for form in sets if _is_usual_ending(form[-1])]
  sets = {form: sets[form] for form in usual} or sets
  if not sets:
    return []
  several = [min(numbered.items())[1][0] for numbered in sets.values()]
  several += [x for x in others if _RECORD_ENDING.search(x)]
  for numbered in sets.values():
    several = next((x for x in numbered.values() if len(x) > 1), several)
  if len(several) > 1:
    raise UserError(
      f"the data folder {directory!r} holds several sets of {split!r} shards,"
      f" such as {several[0]!r} and {several[1]!r}; move all but one set"
      " elsewhere."
    )
  ((form, numbered),) = sets.items()
  _check_whole(directory, split, form, numbered, names)
  return [names[0] for _, names in sorted(numbered.items())]


def _is_usual_ending(ending: str) -> bool:
  return not ending or _RECORD_ENDING.fullmatch(ending) is not None


def _check_whole(directory, split, form, found, names) -> None:
  """Raises a UserError if a number of a set of shards is missing.

  Args:
    directory: of the shards.
    split: that they belong to.
    form: what their names consist of, but for their numbers.
    found: {number: names}.
    names: of all files of the split.
  """
  start, of, total, end = form
  # Some number them from 1.
  first = 1 if 0 not in found and int(total) in found else 0
  expected = range(first, first + int(total))
  missing = [number for number in expected if number not in found]
  if not missing and len(found) == int(total):
    return
  if not missing:
    name = found[max(found)][0]
    raise UserError(
      f"{name!r} in the data folder {directory!r} is one shard too many for a"
      f" set of {int(total)}; move it elsewhere, or write the shards again."
    )
  name = f"{start}{missing[0]:0{len(total)}d}{of}{total}{end}"
  partial = [other for other in names if other.startswith(name)]
  there_is = f" (there is {partial[0]!r})" if partial else ""
  raise UserError(
    f"{len(missing):,} of the {int(total):,} shards of the {split!r} split in"
    f" {directory!r} are missing, such as {name!r}{there_is}; restore them, or"
    " write the shards again."
  )


def _warn_of_gaps(directory: str, names: Sequence[str]) -> None:
  """Warns if numbered shards, whose names do not say how many, skip some."""
  matches = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
  if not all(matches) or len({(m[1], m[3]) for m in matches}) != 1:
    return
  numbers = {int(match[2]) for match in matches}
  missing = sorted(set(range(min(numbers), max(numbers))) - numbers)
  if missing and len(missing) < len(numbers):
    LOGGER.warning(
      "The numbers of the shards in %r skip %d, such as %d: if that one is"
      " missing, restore it.",
      directory,
      len(missing),
      missing[0],
    )


def _key(files: Sequence[str], fields: Fields) -> str:
  state = []
  for file in files:
    status = tf.io.gfile.stat(file)
    if not status.length:
      raise UserError(
        f"the shard {file!r} is empty (0 bytes); restore it, or write the"
        " shards again."
      )
    state.append((file, status.length, status.mtime_nsec))
    if is_local(file):
      # Copying tools set the time of modification, in TensorFlow in seconds;
      # nobody sets that of the last change.
      state.append(os.stat(file).st_ctime_ns)
  text = repr((_VERSION, state, fields))
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_shards(files: Sequence[str], fields: Fields) -> dict:
  counts, hashes, labels = [], [], collections.Counter()
  for file in counted(files, "Counting records, shard by shard"):
    found, digest = _read_shard(file, fields)
    counts.append(len(found))
    hashes.append(digest)
    labels.update(found)
  return {"counts": counts, "hashes": hashes, "labels": labels}


def _read_shard(path: str, fields: Fields) -> tuple[list[int], str]:
  """Returns the labels and the hash of the records of a shard."""
  labels, images, digest = [], 0, hashlib.sha256()
  try:
    for serialized in read_records(path).as_numpy_iterator():
      digest.update(len(serialized).to_bytes(8, "little") + serialized)
      values = read_features(serialized, fields)
      labels.append(_label(serialized, fields))
      images += len(values.images)
  except tf.errors.DataLossError as error:
    if not labels and _is_compressed(path):
      raise UserError(
        f"the shard {path!r} is compressed; write the shards again without"
        " compression."
      ) from error
    raise UserError(
      f"the shard {path!r} is not a whole TFRecord file after {len(labels)}"
      f" records ({plain_message(error)}); restore it, or write the shards"
      " again."
    ) from error
  except ValueError as error:
    raise UserError(
      f"record {len(labels)} of the shard {path!r} has no label from"
      f" {fields.first_label} on in {fields.label!r} ({error}); bind"
      " pipeline.Split.fields = @tfrecords.Fields() and tfrecords.Fields.label"
      " to the name of a feature that holds one integer, or write the shards"
      " again."
    ) from error
  if labels and not images:
    raise UserError(
      f"no record of the shard {path!r} has an image in {fields.image!r} (they"
      f" have {describe_features(serialized)}); bind pipeline.Split.fields ="
      " @tfrecords.Fields() and tfrecords.Fields.image to the name of a feature"
      " that holds one."
    )
  return labels, digest.hexdigest()


def _is_compressed(path: str) -> bool:
  """Returns whether a file begins as those of GZIP and ZLIB do."""
  with tf.io.gfile.GFile(path, "rb") as file:
    head = file.read(2)
  zlib = head[:1] == b"\x78" and int.from_bytes(head, "big") % 31 == 0
  return zlib or head == b"\x1f\x8b"


def _label(serialized: bytes, fields: Fields) -> int:
  """Returns the class number of an example.

  Raises:
    ValueError: if it has none; says what there is.
    UserError: if it is too large to be one.
  """
  labels = read_features(serialized, fields).labels
  if len(labels) != 1:
    raise ValueError(describe_label(serialized, fields))
  (label,) = labels
  if label < 0:
    raise ValueError(f"it holds {label + fields.first_label}")
  if label >= MAX_CLASSES:
    raise UserError(
      f"the labels in {fields.label!r} go up to {label:,} or more; expected"
      f" class numbers below {MAX_CLASSES:,}: write the shards again with"
      " classes numbered from 0, or bind tfrecords.Fields.label to another"
      " feature."
    )
  return label
