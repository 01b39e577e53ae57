"""The folder that shards are written to: whose it is, and what is lost."""

from __future__ import annotations

import collections
import contextlib
import json
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from nfnets_tf.data.catalogs import Catalog
from nfnets_tf.data.dataset_info import (
  INDEX,
  UNFINISHED,
  describe_split,
  write_index,
)
from nfnets_tf.data.preparing import ShardTask, read_sidecar
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import file_sha256, read_json


class ShardFolder:
  """A folder that belongs to one list of images and its settings.

  Args:
    path: the folder, local or gs://.
    key: changes with the images and the settings.
    tasks: {split: its shards}.
  """

  def __init__(
    self, path: str, key: str, tasks: Mapping[str, Sequence[ShardTask]]
  ):
    self.path, self._key, self._tasks = path, key, tasks

  def take(self) -> None:
    """Takes the folder.

    Raises:
      UserError: if it is a file or holds something else.
    """
    for name in (INDEX, UNFINISHED):
      path = os.path.join(self.path, name)
      if not tf.io.gfile.exists(path):
        continue
      key = read_json(path).get("key")
      if key != self._key:
        raise UserError(
          f"{self.path!r} holds shards of other images or settings ({name});"
          " bind DATA_DIR to another folder, or remove this one."
        )
      return
    there = tf.io.gfile.exists(self.path)
    if there and not tf.io.gfile.isdir(self.path):
      raise UserError(
        f"{self.path!r} is a file; bind DATA_DIR to a folder for the shards,"
        " which is made if it is not there."
      )
    if there and (others := sorted(tf.io.gfile.listdir(self.path))):
      raise UserError(
        f"{self.path!r} holds other files, such as {others[0]!r}, and nothing"
        " is overwritten; bind DATA_DIR to a new folder."
      )
    begun = os.path.join(self.path, UNFINISHED)
    try:
      tf.io.gfile.makedirs(self.path)
      with tf.io.gfile.GFile(f"{begun}.partial", "w") as file:
        json.dump({"key": self._key}, file)
      tf.io.gfile.rename(f"{begun}.partial", begun, overwrite=True)
    except tf.errors.OpError as error:
      raise UserError(
        f"nothing can be written to {self.path!r} ({error.message}); bind"
        " DATA_DIR to a folder that can be made and written to."
      ) from error

  def read_split_info(self) -> dict | None:
    """Returns the index, None if not all shards are written yet."""
    path = os.path.join(self.path, INDEX)
    if not tf.io.gfile.exists(path):
      return None
    return read_json(path)

  def lost(self, index: Mapping) -> list[ShardTask]:
    """Returns the tasks of shards that are not as large as the index says."""
    entries = _by_name(index)

    def there(path):
      size = entries[os.path.basename(path)]["bytes"]
      return tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length == size

    tasks = (task for some in self._tasks.values() for task in some)
    return [task for task in tasks if not there(task.path)]

  def check_mended(self, index: Mapping, tasks: Sequence[ShardTask]) -> None:
    """Compares shards that were written again with what the index says.

    Raises:
      UserError: if they have other bytes than before.
    """
    entries = _by_name(index)
    for task in tasks:
      before = entries[os.path.basename(task.path)]
      if file_sha256(task.path) != before["sha256"]:
        raise UserError(
          f"the shard {task.path!r} was written again and is not what {INDEX}"
          " says: the images have changed; write all of them to another folder."
        )

  def conclude(self, catalog: Catalog, *, max_bad_share: float) -> None:
    """Writes the index of shards that are all written.

    Args:
      catalog: what they are made of.
      max_bad_share: of the images that may be unusable, in [0, 1].

    Raises:
      UserError: if more are, or a split has no image.
    """
    written = {
      split: [read_sidecar(task) for task in tasks]
      for split, tasks in self._tasks.items()
    }
    shards = [shard for some in written.values() for shard in some]
    if None in shards and self.read_split_info() is not None:
      return  # another process has concluded it and tidied up
    faults = sum(
      (collections.Counter(shard["faults"]) for shard in shards),
      collections.Counter(),
    )
    duplicates = [name for shard in shards for name in shard["duplicates"]]
    _check_faults(catalog, shards, faults, max_bad_share)
    for split, some in written.items():
      if not any(shard["examples"] for shard in some):
        raise UserError(
          f"no image of the {split!r} split is left: {len(duplicates):,} look"
          " like one of BuildShardsJob.without and"
          f" {sum(faults.values()):,} cannot be used; bind"
          " BuildShardsJob.without to another set, and DATA_DIR to another"
          " folder."
        )
    classes = catalog.class_names
    write_index(
      self.path,
      {
        "format": 2,
        "key": self._key,
        "class_names": list(classes),
        "rule": catalog.rule,
        "left_out": {"faults": faults, "near_duplicates": duplicates},
        "splits": {
          split: describe_split(some, len(classes))
          for split, some in written.items()
        },
      },
    )

  def clean(self) -> None:
    """Removes what lay beside the shards, killed writers' parts included."""
    for name in tf.io.gfile.listdir(self.path):
      if (
        name == UNFINISHED
        or ".partial" in name
        or name.endswith(".tfrecord.json")
      ):
        # Another process may be tidying up as well.
        with contextlib.suppress(tf.errors.NotFoundError):
          tf.io.gfile.remove(os.path.join(self.path, name))


def _by_name(index: Mapping) -> dict[str, dict]:
  parts = index["splits"].values()
  return {shard["file"]: shard for part in parts for shard in part["shards"]}


def _check_faults(catalog, shards, faults, max_bad_share: float) -> None:
  images, bad = sum(map(len, catalog.splits.values())), sum(faults.values())
  if bad > max_bad_share * images:
    named = [name for shard in shards for name in shard["named"]]
    raise UserError(
      f"{bad:,} of {images:,} images cannot be used, more than max_bad_share ="
      f" {max_bad_share:.2%}:"
      f" {', '.join(f'{n:,} {cause}' for cause, n in faults.items())}, such as"
      f" {'; '.join(named[:3])}; repair or remove them and write to another"
      " folder, or bind build_shards.BuildShardsJob.max_bad_share to a larger"
      " share and give another --workdir."
    )
