"""Tables of runs as people have them, read from CSV files."""

from __future__ import annotations

import csv
import functools
import io
import logging
import re
from collections.abc import Sequence
from numbers import Real

import pandas as pd

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import decode_text

LOGGER = logging.getLogger("nfnets_tf")

_NAMES = ("point", "run", "trial", "name")  # columns that name a run
_MAX_NAMED = 5
_SEPARATORS = ",;\t|"
_BLANKS = re.compile(r"[\s'_\u2019]+")  # between groups of three digits
_EXPONENT = r"(?:[eE][+-]?\d+)?"
_DOT_GROUPS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d*)?")
_COMMA_GROUPS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?" + _EXPONENT)
_COMMA_DECIMAL = re.compile(r"[+-]?\d*,\d+" + _EXPONENT)
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
