"""What a run is trained on, by content: recorded at its start, then compared.

Neither the path nor the time of a file counts: shards may be moved, and copies
or shards that are written again from the same images are the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_run_data, write_run_data

if TYPE_CHECKING:
  from nfnets_tf.data.dataset_info import SplitInfo

LOGGER = logging.getLogger("nfnets_tf")

# In the order in which a difference is named.
_COMPARED = {
  "examples": "the number of examples",
  "num_classes": "the number of classes",
  "classes": "the names or the order of the classes",
  "shards": "the number of shards",
  "content": "the content of the shards",
}


def identify(info: SplitInfo) -> dict[str, object]:
  """Returns what tells a split's data from any other's, for data.json."""
  return {
    "folder": os.path.dirname(info.files[0]),
    "examples": info.num_examples,
    "num_classes": info.num_classes,
    "classes": _digest(info.class_names),
    "shards": len(info.files),
    "content": _digest([info.counts, info.hashes]),
  }


def record_data(
  root: str, *, num_data_streams: int, **splits: SplitInfo
) -> None:
  """Writes data.json at the start of a run, and checks it when it resumes.

  The content of the data counts, not their folder; see `identify`.

  Args:
    root: the work directory.
    num_data_streams: of the order of examples; recorded at the start only.
    **splits: {split: its files and counts}.

  Raises:
    UserError: if the run began with other data, or with an earlier release.
  """
  recorded = read_run_data(root)
  if recorded:
    for split, info in splits.items():
      check_same(root, split, recorded[split], info)
  data = {split: identify(info) for split, info in splits.items()}
  data = {"num_data_streams": num_data_streams, **recorded, **data}
  if data != recorded:  # a new run, or data that were moved
    write_run_data(root, data)


def check_same(
  root: str, split: str, recorded: Mapping | None, info: SplitInfo
) -> None:
  """Checks that a run resumes with the data that it began with.

  Args:
    root: the work directory, for the message.
    split: name of the split in data.json.
    recorded: in data.json; earlier releases recorded the folder and the number
      of examples only.
    info: of the data now.

  Raises:
    UserError: if they differ; says in what.
  """
  now, then = identify(info), dict(recorded or {})
  if "content" not in then and then.get("folder") != now["folder"]:
    then.update(_identify_folder(root, split, then, info))
  for key, name in _COMPARED.items():
    if key in then and then[key] != now[key]:
      numbers = "" if isinstance(now[key], str) else f" ({then[key]:,} then,"
      numbers = numbers and f"{numbers} {now[key]:,} now)"
      raise UserError(
        f"the {split!r} data have changed since the run in {root!r} started:"
        f" {name}{numbers} in {now['folder']!r} differs from that of"
        f" {then.get('folder')!r}; restore the data, in any folder, or start a"
        " new run in another --workdir."
      )


def _identify_folder(root, split, then: Mapping, info: SplitInfo) -> dict:
  """Returns the identity of the data in the folder where a run began."""
  folder = str(then.get("folder"))
  name = os.path.basename(info.files[0]).split("-")[0]
  try:
    before = read_split_info(folder, name, info.fields, check_sizes=False)
    return identify(before)
  except UserError:
    LOGGER.warning(
      "The run in %r began with an earlier release, which recorded of its %r"
      " data only that they were %s examples in %r, now in %r: make sure that"
      " they are the same.",
      root,
      split,
      then.get("examples"),
      folder,
      os.path.dirname(info.files[0]),
    )
    return {}


def _digest(value: object) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()
