"""Tables of runs as people have them, read from CSV files."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import logging
import re
from collections.abc import Sequence
from numbers import Real

import numpy as np
import pandas as pd

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import decode_text
from nfnets_tf.ranges import TEXT, accepts, optional
from nfnets_tf.scaling.sparsity_law import sparsity_levels

LOGGER = logging.getLogger("nfnets_tf")

DENSE, UNSTRUCTURED = "dense", "unstructured"

_NAMES = ("point", "run", "trial", "name")  # columns that name a run
_MAX_NAMED = 5
_SEPARATORS = ",;\t|"
_BLANKS = re.compile(r"[\s'_\u2019]+")  # between groups of three digits
_EXPONENT = r"(?:[eE][+-]?\d+)?"
_DOT_GROUPS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d*)?")
_COMMA_GROUPS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?" + _EXPONENT)
_COMMA_DECIMAL = re.compile(r"[+-]?\d*,\d+" + _EXPONENT)
_SPARSE_NUMBERS = ("sparsity", "nonzero", "data", "loss")
_NM = re.compile(r"\d+\s*:\s*(\d+)")
_LEADING_ZERO = re.compile(r"[+-]?0")


def parse_table(content: bytes, path: str) -> pd.DataFrame:
  """Returns the table of a CSV file.

  Separators are commas, semicolons, tabs or bars. Numbers may have decimal
  commas or separated thousands.

  Args:
    content: of the file, in UTF-8, in UTF-16 with its mark, or in Windows'
      Western encoding.
    path: of the file, for messages.

  Raises:
    UserError: if it is no table, a row has more fields than the header, or two
      columns have one name.
  """
  text = _decode(content)
  first, _, rest = text.partition("\n")
  if re.fullmatch(r'"?sep=.?"?\s*', first, flags=re.I):  # Excel's own
    text = rest
  separator = _separator(text)
  _check_lengths(text, separator, path)
  try:
    table = pd.read_csv(io.StringIO(text), sep=separator, skipinitialspace=True)
  except ValueError as error:
    raise UserError(
      f"{path!r} is not a CSV table ({str(error).splitlines()[0]}); expected a"
      " row for each run."
    ) from error
  return _convert_numbers(table, separator)


def find_column(table: pd.DataFrame, name: str) -> str | None:
  """Returns the column of a name, whatever its case and the spaces around it.

  Args:
    table: any.
    name: of a column.

  Returns:
    The column's own name; None if there is none, or several.
  """
  if name in table:
    return name
  wanted = name.strip().casefold()
  same = [x for x in table if str(x).strip().casefold() == wanted]
  return same[0] if len(same) == 1 else None


def run_names(table: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
  """Returns the name of each run, for messages.

  Args:
    table: a row for each run. If it has no column that names them, their
      names are made of the row's number, model and epochs.
    runs: columns model and epochs.
  """
  for column in _NAMES:
    name = find_column(table, column)
    if name is not None and table[name].notna().all() and table[name].is_unique:
      return [str(value) for value in table[name]]
  return [
    f"row {number} ({model}, epochs {_repr(epochs)})"
    for number, model, epochs in zip(
      range(1, len(runs) + 1), runs["model"], runs["epochs"]
    )
  ]


def warn_of_unusable(runs: pd.DataFrame, usable: pd.DataFrame) -> None:
  """Logs a warning that names runs and the values that cannot be used.

  Args:
    runs: column name, and those of `usable`.
    usable: whether each value can be used.
  """
  bad = (~usable).any(axis=1).to_numpy()
  if not bad.any():
    return
  texts = [
    f"{name}: "
    + ", ".join(
      f"{c} = {_repr(value)}" for c, value in row.items() if not fine[c]
    )
    for name, (_, row), (_, fine) in zip(
      runs["name"][bad][:_MAX_NAMED],
      runs[usable.columns][bad].iterrows(),
      usable[bad].iterrows(),
    )
  ]
  if bad.sum() > _MAX_NAMED:
    texts.append("...")
  LOGGER.warning(
    "Rows without positive numbers are skipped, %d of %d: %s.",
    bad.sum(),
    len(runs),
    "; ".join(texts),
  )


@accepts(
  sparsity=TEXT,
  nonzero=TEXT,
  data=TEXT,
  loss=TEXT,
  structure=optional(TEXT),
  rate=optional(TEXT),
)
@dataclasses.dataclass(frozen=True)
class SparsityColumns:
  """Names of the columns of a table with a row for each run.

  Attributes:
    sparsity: share of the parameters that are zero, at least 0 and below 1.
    nonzero: number of the other parameters.
    data: that the network was trained on, in any unit.
    loss: final loss.
    structure: of the zeros, such as "unstructured", "2:4" or "1:4"; patterns
      n:m with the same m share a law. An empty cell is "unstructured", and
      dense networks need none. None if all runs have one structure.
    rate: peak learning rate, of which the best one counts; None if each row
      is a point of its own.
  """

  sparsity: str
  nonzero: str
  data: str
  loss: str
  structure: str | None = None
  rate: str | None = None


def read_sparse_runs(
  table: pd.DataFrame, columns: SparsityColumns
) -> tuple[pd.DataFrame, dict[str, int]]:
  """Returns the runs of a table, and the number of skipped rows.

  Args:
    table: a row for each run; where it has a column `state`, rows that are not
      "done" are skipped, as are rows with an empty cell.
    columns: names of its columns; case and spaces around them do not matter.

  Returns:
    Columns structure, sparsity, level (see `sparsity_levels`), nonzero, data,
    loss and name (of the row, for messages); and {reason: rows}.

  Raises:
    UserError: if a column does not exist, or a value is impossible.
  """
  names = dataclasses.asdict(columns)
  actual = {key: n and find_column(table, n) for key, n in names.items()}
  missing = [names[key] for key, n in actual.items() if names[key] and not n]
  if missing:
    raise UserError(
      f"the table has no column {missing[0]!r}; bind SparsityColumns to its"
      f" columns: {', '.join(map(str, table.columns))}."
    )
  runs = pd.DataFrame({k: table[n] if n else None for k, n in actual.items()})
  runs["name"] = [f"row {number}" for number in range(1, len(runs) + 1)]
  skipped = {}
  if (state := find_column(table, "state")) is not None:
    done = table[state].astype(str).str.strip().str.lower() == "done"
    skipped["not done"] = int((~done).sum())
    runs = runs[done]
  given = runs[[*_SPARSE_NUMBERS]].notna()
  warn_of_unusable(runs, given)
  skipped["with an empty cell"] = int((~given.all(axis=1)).sum())
  runs = runs[given.all(axis=1)].copy()
  for key in _SPARSE_NUMBERS:
    _check(runs, key, names[key])
    runs[key] = pd.to_numeric(runs[key])
  runs["level"] = sparsity_levels(runs["sparsity"])
  runs["structure"] = _structures(runs)
  copies = runs.drop(columns="name").duplicated()
  skipped["copies of another row"] = int(copies.sum())
  runs = runs[~copies]
  if columns.rate:
    best = runs.sort_values("loss", kind="stable").drop_duplicates(
      ["structure", "sparsity", "nonzero", "data"]
    )
    skipped["of worse learning rates"] = len(runs) - len(best)
    runs = best.sort_index()
  skipped = {reason: count for reason, count in skipped.items() if count}
  return runs.drop(columns="rate").reset_index(drop=True), skipped


def _check(runs: pd.DataFrame, key: str, column: str) -> None:
  """Raises a UserError that names the first impossible value of a column."""
  values = pd.to_numeric(runs[key], errors="coerce")
  valid = np.isfinite(values) & (values > 0)
  expected = "a number above 0"
  if key == "sparsity":
    valid = (values >= 0) & (values < 1)
    expected = "the share of zeros, at least 0 and below 1 (50 % is 0.5)"
  if not valid.all():
    row = runs[~valid].iloc[0]
    raise UserError(
      f"{row['name']} of the table has {column} = {row[key]}"
      f" ({(~valid).sum()} of {len(runs)} rows are like that); expected"
      f" {expected}: correct or remove them."
    )


def _structures(runs: pd.DataFrame) -> list[str]:
  """Returns the structure of each run; patterns of one law have one name."""
  names, spellings = [], {UNSTRUCTURED: UNSTRUCTURED}
  for run in runs.itertuples():
    given = "" if pd.isna(run.structure) else str(run.structure).strip()
    if run.level == 0:
      names.append(DENSE)
      continue
    if given.lower() == DENSE:
      raise UserError(
        f"{run.name} of the table is {given!r} but has a sparsity of"
        f" {run.sparsity:g}; expected 0 for dense networks."
      )
    match = _NM.fullmatch(given)
    name = f"n:{match[1]}" if match else given or UNSTRUCTURED
    names.append(spellings.setdefault(name.lower(), name))
  return names


def _repr(value) -> str:
  return f"{value:g}" if isinstance(value, Real) else repr(value)


def _decode(content: bytes) -> str:
  try:
    return decode_text(content)
  except UnicodeDecodeError:
    return content.decode("cp1252", errors="replace")


def _separator(text: str) -> str:
  """Returns the most frequent separator in the header."""
  header = next((line for line in text.splitlines() if line.strip()), "")
  bare = re.sub(r'"[^"]*"', "", header)
  return max(_SEPARATORS, key=bare.count)


def _check_lengths(text: str, separator: str, path: str) -> None:
  """Raises a UserError if pandas would shift, drop or rename fields."""
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True
  )
  try:
    rows = [(reader.line_num, row) for row in reader if any(row)]
  except csv.Error as error:
    raise UserError(
      f"{path!r} is not a CSV table ({error}); expected a row for each run."
    ) from error
  if not rows:
    return
  (_, header), body = rows[0], rows[1:]
  names = [name.strip() for name in header if name.strip()]
  if repeated := [name for name in names if names.count(name) > 1]:
    raise UserError(
      f"{path!r} has two columns {repeated[0]!r}; rename or remove one of them."
    )
  longer = [(line, row) for line, row in body if len(row) > len(header)]
  if not longer or _has_row_names(header, [row for _, row in body]):
    return
  line, row = longer[0]
  raise UserError(
    f"{path!r} is not a CSV table: line {line} has {len(row)} fields, and the"
    f" header {len(header)}; put fields that contain {separator!r}, such as"
    " numbers with a decimal comma, in quotes."
  )


def _has_row_names(header: Sequence[str], body: Sequence[list[str]]) -> bool:
  """Returns whether a column of names or numbers precedes the named ones."""
  if any(len(row) != len(header) + 1 for row in body):
    return False
  names = [row[0] for row in body]
  counted = [[str(i + k) for i in range(len(names))] for k in (0, 1)]
  return (
    names in counted
    or len({*names}) == len(names)
    and not any(re.match(r"[+-]?[\d.]", name) for name in names)
  )


def _convert_numbers(table: pd.DataFrame, separator: str) -> pd.DataFrame:
  """Converts text columns of which most cells are numbers."""
  texts = {
    name: table[name].map(_without_blanks)
    for name in table
    if not pd.api.types.is_numeric_dtype(table[name])
  }
  decimal = {name: _has_decimal_commas(x) for name, x in texts.items()}
  # One program wrote all columns; where none says how, its other signs do.
  known = {value for value in decimal.values() if value is not None}
  usual = known.pop() if len(known) == 1 else None
  if usual is None and (separator == "," or _has_fractions(table)):
    usual = False
  columns = {}
  for name, cells in texts.items():
    commas = usual if decimal[name] is None else decimal[name]
    numbers = cells.map(functools.partial(_number, decimal_comma=commas))
    count = pd.to_numeric(numbers, errors="coerce").count()
    if count > cells.notna().sum() / 2:
      columns[name] = numbers
  return table.assign(**columns)


def _has_fractions(table: pd.DataFrame) -> bool:
  """Returns whether numbers with a decimal point are in a table."""
  numbers = table.select_dtypes("float")
  return bool((numbers.notna() & (numbers % 1 != 0)).any(axis=None))


def _without_blanks(cell):
  return _BLANKS.sub("", cell) if isinstance(cell, str) else cell


def _has_decimal_commas(cells: pd.Series) -> bool | None:
  """Returns whether commas in a column are decimal ones; None if unknown."""
  texts = [x for x in cells if isinstance(x, str) and "," in x]
  if any(
    _COMMA_DECIMAL.fullmatch(x)
    and not (_COMMA_GROUPS.fullmatch(x) and not _LEADING_ZERO.match(x))
    or _DOT_GROUPS.fullmatch(x)
    for x in texts
  ):
    return True
  grouped = (
    _COMMA_GROUPS.fullmatch(x) and (x.count(",") > 1 or "." in x) for x in texts
  )
  return False if any(grouped) else None


def _number(cell, decimal_comma: bool | None):
  """Returns a cell as a number if it is one, else as it is."""
  if not isinstance(cell, str):
    return cell
  text = cell
  if decimal_comma and _DOT_GROUPS.fullmatch(text):
    text = text.replace(".", "").replace(",", ".")
  elif decimal_comma and _COMMA_DECIMAL.fullmatch(text):
    text = text.replace(",", ".")
  elif decimal_comma is False and _COMMA_GROUPS.fullmatch(text):
    text = text.replace(",", "")
  try:
    return float(text)
  except ValueError:
    return cell
