"""TFRecord shards that nobody has written an index of: counted, once."""

from __future__ import annotations

import hashlib
import json
import logging
import os

import tensorflow as tf

from nfnets_tf.data.records import Fields
from nfnets_tf.errors import UserError, plain_message

LOGGER = logging.getLogger("nfnets_tf")

_SCANS = "~/.cache/nfnets_tf/scans"


def scan(
  directory: str, split: str, fields: Fields
) -> tuple[tuple[str, ...], tuple[int, ...], int]:
  """Reads shards through once; what was counted is kept until they change.

  Args:
    directory: of the files `SPLIT-*`.
    split: its name.
    fields: what an example calls its parts.

  Returns:
    The shards, the number of examples in each, and one more than the largest
    label.

  Raises:
    UserError: if there are no shards, one is cut off, or a label is missing.
  """
  files = sorted(
    os.path.join(directory, name)
    for name in tf.io.gfile.listdir(directory)
    if name.startswith(f"{split}-")
  )
  if not files:
    found = sorted(tf.io.gfile.listdir(directory))[:3]
    holds = f"it holds {', '.join(found)}" if found else "it is empty"
    raise UserError(
      f"the data folder {directory!r} has no {split}-* shards ({holds}); bind"
      " DATA_DIR to a folder of TFRecord shards."
    )
  path = os.path.join(os.path.expanduser(_SCANS), f"{_key(files, fields)}.json")
  if tf.io.gfile.exists(path):
    with tf.io.gfile.GFile(path) as file:
      kept = json.load(file)
  else:
    LOGGER.info("Counting %d shards in %s, once.", len(files), directory)
    labels = [_labels(file, fields) for file in files]
    largest = max((max(some) for some in labels if some), default=-1)
    kept = {"counts": [len(some) for some in labels], "classes": largest + 1}
    _keep(path, kept)
  return tuple(files), tuple(kept["counts"]), kept["classes"]


def _keep(path: str, kept: dict) -> None:
  partial = f"{path}.partial-{os.getpid()}"
  try:
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(partial, "w") as file:
      json.dump(kept, file)
    tf.io.gfile.rename(partial, path, overwrite=True)
  except tf.errors.OpError as error:
    LOGGER.warning("What was counted cannot be kept (%s).", error.message)


def _key(files, fields) -> str:
  found = (tf.io.gfile.stat(file) for file in files)
  state = [(f, x.length, x.mtime_nsec) for f, x in zip(files, found)]
  return hashlib.sha256(repr((state, fields)).encode()).hexdigest()[:24]


def _labels(path: str, fields: Fields) -> list[int]:
  """Returns the labels of a shard, each of which must be there and >= 0."""
  name, first = fields.label, fields.first_label
  missing = tf.io.FixedLenFeature([], tf.int64, default_value=first - 1)
  batches = tf.data.TFRecordDataset(path).batch(1024)
  batches = batches.map(
    lambda x: tf.io.parse_example(x, {name: missing})[name] - first
  )
  labels = []
  try:
    for batch in batches:
      labels.extend(batch.numpy().tolist())
  except tf.errors.DataLossError as error:
    raise UserError(
      f"the shard {path!r} is not a whole TFRecord file after {len(labels)}"
      f" records ({plain_message(error)}); restore it, or write the shards"
      " again."
    ) from error
  if labels and min(labels) < 0:
    position = labels.index(min(labels))
    raise UserError(
      f"record {position} of the shard {path!r} has no label of {first} or more"
      f" in {name!r}; write the shards again with one label for every image, or"
      " bind pipeline.Split.fields to what they have."
    )
  return labels
