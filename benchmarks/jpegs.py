"""JPEG files for benchmarks, in a folder and as shards."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

_PARTS = 4


def read(directory: str, count: int, *, at_least: int) -> list[bytes]:
  """Reads the first `count` JPEGs of a folder, at any depth.

  Exits if there are fewer than `at_least`.
  """
  paths = (
    os.path.join(folder, name)
    for folder, _, names in sorted(os.walk(directory))
    for name in sorted(names)
    if name.lower().endswith((".jpg", ".jpeg"))
  )
  encoded = []
  for path in paths:
    if len(encoded) == count:
      break
    with open(path, "rb") as file:
      encoded.append(file.read())
  if len(encoded) < at_least:
    sys.exit(
      f"{directory!r} holds {len(encoded)} JPEGs; {at_least} are needed."
    )
  return encoded


def write_shards(folder: str, encoded: Sequence[bytes], shards: int) -> None:
  """Writes shards that hold a quarter of the images each, with an index."""
  # Late: timm's environment, which reads images here, has no TensorFlow.
  from nfnets_tf.data import dataset_info, tfrecords

  entries = []
  for shard in range(shards):
    examples = (
      (0, tfrecords.Record(image, 0, "", "", "jpeg").serialize())
      for image in encoded[shard % _PARTS :: _PARTS]
    )
    name = tfrecords.shard_name("train", shard, shards)
    entries.append(tfrecords.write_shard(os.path.join(folder, name), examples))
  split = dataset_info.describe_split(entries, 1)
  dataset_info.write_index(
    folder, {"format": 2, "class_names": ["x"], "splits": {"train": split}}
  )


def forget(paths: Sequence[str]) -> None:
  """Drops files from the page cache, once nothing reads them."""
  time.sleep(0.5)  # for what is read ahead to end
  for path in paths:
    with open(path, "rb") as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
