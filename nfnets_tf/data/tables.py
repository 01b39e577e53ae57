"""A CSV file that lists images with their labels and perhaps their splits."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.data.listing import (
  HELDOUT_NAMES,
  TRAIN_NAMES,
  check_share,
  digest,
  is_held_out,
)
from nfnets_tf.errors import UserError

# A class number beyond this is more likely to be some other number.
_MAX_CLASSES = 1_000_000
_NUMBER = 0  # no name of a column


class Table(NamedTuple):
  """What a CSV file lists.

  Attributes:
    class_names: in the order of the labels.
    splits: {"train" or "heldout": (path, label) of its images}.
    rule: how the splits came about.
  """

  class_names: tuple[str, ...]
  splits: dict[str, list[tuple[str, int]]]
  rule: str


def read_table(path: str, heldout_share: float) -> Table:
  """Reads a CSV file with the columns path, label and perhaps split.

  Classes are the different labels, sorted: as numbers if all are whole numbers,
  which then must be 0, 1, 2, ... of classes that may be missing in between. The
  column split says train and one of heldout, test, val and the like.

  Args:
    path: of the CSV file, in UTF-8, with a line of column names.
    heldout_share: of the images that is held out, by the SHA-256 of their
      paths, if there is no column split; in (0, 1).

  Raises:
    UserError: if the file is not there, columns are missing, a line has not all
      of them, or numbers are too large for those of classes.
  """
  check_share(heldout_share)
  names, rows = _read_rows(os.path.expanduser(path))
  _check_rows(path, names, rows)
  class_names = _class_names([row["label"] for row in rows])
  labels = {name: label for label, name in enumerate(class_names)}
  splits = {}
  heldout = _held_out(names, rows, heldout_share)
  for row in rows:
    split = "heldout" if row["path"] in heldout else "train"
    reference = row["path"], labels[_plain(row["label"])]
    splits.setdefault(split, []).append(reference)
  rule = (
    "the column split"
    if "split" in names
    else f"{heldout_share:g} held out by the SHA-256 of the paths"
  )
  return Table(class_names, splits, rule)


def _held_out(names, rows, share: float) -> set[str]:
  """Returns the paths of the images that are held out."""
  paths = {row["path"] for row in rows}
  if "split" in names:
    held = (row for row in rows if row["split"].lower() in HELDOUT_NAMES)
    return {row["path"] for row in held}
  found = {path for path in paths if is_held_out(path, share)}
  # At least one on each side, as in a folder.
  in_order = sorted(paths, key=digest)
  return (found or set(in_order[:1])) - set(in_order[-1:])


def _read_rows(path: str) -> tuple[Sequence[str], list[dict]]:
  """Returns the names of the columns and the lines, with their numbers."""
  if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
    raise UserError(
      f"the CSV file {path!r} does not exist; bind CSV to a file with the"
      " columns path and label."
    )
  with tf.io.gfile.GFile(path, "rb") as file:
    # Spreadsheets put a mark before the first name.
    text = file.read().decode("utf-8-sig", errors="replace")
  reader = csv.DictReader(io.StringIO(text, newline=""))
  rows = [{**row, _NUMBER: reader.line_num} for row in reader]
  return reader.fieldnames or (), rows


def _check_rows(path: str, names, rows) -> None:
  if not rows or not {"path", "label"} <= set(names):
    raise UserError(
      f"the CSV file {path!r} has {len(rows)} lines below the column names"
      f" {list(names)}; expected path and label among the names, separated by"
      " commas, and a line for every image."
    )
  seen = {}
  for row in rows:
    number = row.pop(_NUMBER)
    if not row["path"] or not row["label"] or None in row:
      raise UserError(
        f"line {number} of {path!r} is {list(row.values())}; expected a path"
        " and a label."
      )
    if seen.setdefault(row["path"], row) != row:
      raise UserError(
        f"line {number} of {path!r} gives {row['path']!r} another label or"
        " split than a line before; remove one of them."
      )
  if "split" not in names:
    return
  found = {row["split"] or "" for row in rows}
  train = {name for name in found if name.lower() in TRAIN_NAMES}
  heldout = {name for name in found if name.lower() in HELDOUT_NAMES}
  if len(heldout) > 1 or found - train - heldout:
    raise UserError(
      f"the column split of {path!r} holds"
      f" {', '.join(map(repr, sorted(found)))}; expected train and one of"
      f" {', '.join(HELDOUT_NAMES)}, in every line."
    )


def _plain(label: str) -> str:
  return str(int(label)) if label.strip().isdecimal() else label


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
  names = set(map(_plain, labels))
  if not all(name.isdecimal() for name in names):
    if all(map(_is_number, names)):
      wrong = min(name for name in names if not name.isdecimal())
      raise UserError(
        f"the column label holds {wrong!r}, which is no class number; count"
        " classes 0, 1, 2, ... or give them names."
      )
    return tuple(sorted(names))
  largest = max(map(int, names))
  if largest >= _MAX_CLASSES:
    raise UserError(
      f"the column label goes up to {largest:,}, which is no class number"
      f" below {_MAX_CLASSES:,}; count classes from 0 or give them names."
    )
  return tuple(str(i) for i in range(largest + 1))


def _is_number(name: str) -> bool:
  return re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", name) is not None
