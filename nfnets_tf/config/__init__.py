"""Floor 3: configuration; the only package that imports gin.

Gin files choose and bind; the library knows nothing of them. A gin file names
the job at `config.Launch.job`.
"""

from __future__ import annotations

import ast
import importlib.util  # noqa: F401  gin 0.5.0 uses it without importing it
import logging
import pathlib
import re
import tokenize
from collections.abc import Sequence

import tensorflow as tf

import gin
from nfnets_tf.config import complaints
from nfnets_tf.config import statements as st
from nfnets_tf.ops.errors import UserError

_ROOT = pathlib.Path(__file__).parents[2]
LOGGER = logging.getLogger("nfnets_tf")

_MAY_CHANGE = "config.Launch.may_change"
_INCLUDE = re.compile(r"^include\s+['\"](.+?)['\"]", re.MULTILINE)
_BINDING = re.compile(r"^(\s*)([\w./]+)\s*(?:=|:\s*(?:#.*)?$)")

gin.add_config_file_search_path(str(_ROOT))


class Launch:
  """The root of every configuration.

  Args:
    job: has `plan()` and `run(workdir, ...)`; see `train.run.Training`.
    may_change: names of macros and parameters, such as "EPOCHS", in which a
      work directory's run may go on with other values than it began with.
  """

  def __init__(self, *, job, may_change: Sequence[str] = ()):
    self.job = job
    self.may_change = tuple(may_change)


class Configuration:
  """Gin files and bindings, parsed and checked.

  Args:
    gin_files: the run's file, then overlays; later ones win.
    gin_params: single bindings, such as "EPOCHS = 2"; they win over files.

  Raises:
    UserError: if anything in them does not exist, is missing or is unused.
  """

  def __init__(self, gin_files: Sequence[str], gin_params: Sequence[str] = ()):
    if not gin_files:
      raise UserError(
        "no gin file was given; name a run, such as"
        " --gin_file=gin/quickstart.gin."
      )
    known = _known_files()
    for path in gin_files:
      if _find(path) is None:
        raise complaints.no_such_file(path, known)
    self._given = tuple(gin_files), tuple(gin_params)
    self.text = _parse(*self._given)
    complaints.check(self.text, _sources(gin_files, gin_params))
    self.statements = st.split_statements(self.text)
    if "config.Launch.job" not in self.statements:
      raise UserError(
        f"{gin_files[0]} names no job; bind config.Launch.job, as"
        " gin/base/run.gin does."
      )
    self.name = pathlib.PurePath(gin_files[0]).stem

  def differences(self) -> list[str]:
    """Returns a line for each binding that differs from what the run includes.

    The base of a run is what its first gin file includes, by itself.
    """
    files, params = self._given
    includes = _INCLUDE.findall(_find(files[0]).read_text())
    base = st.split_statements(_parse(includes, ()))
    _parse(files, params)  # gin holds one configuration at a time
    return [
      f"{left} = {after}" + ("" if before is None else f"  (base: {before})")
      for left, before, after in st.differences(base, self.statements)
    ]

  def build_job(self):
    """Builds the job and returns it.

    Raises:
      UserError: if a binding's value is refused.
    """
    try:
      return gin.get_configurable(Launch)().job
    except (TypeError, ValueError, ArithmeticError) as error:
      raise complaints.of_build_error(error) from error

  def check_workdir(self, path: str) -> None:
    """Checks that a work directory was not made with another configuration.

    Args:
      path: of the work directory's config.gin, which need not exist.

    Raises:
      UserError: if it holds another configuration; it shows the differences.
    """
    if not tf.io.gfile.exists(path):
      return
    with tf.io.gfile.GFile(path) as file:
      before = st.split_statements(file.read())
    changed = st.differences(before, self.statements)
    allowed = {_MAY_CHANGE, *self._may_change({*before, *self.statements})}
    if told := _told([c for c in changed if c[0] in allowed - {_MAY_CHANGE}]):
      LOGGER.info("Going on with another configuration: %s.", told)
    if refused := [c for c in changed if c[0] not in allowed]:
      names = sorted({*allowed - {_MAY_CHANGE}, *(c[0] for c in refused)})
      raise UserError(
        f"the work directory was made with another configuration ({path}:"
        f" {_told(refused)}); give another --workdir, or the old values, or"
        f' allow it by --gin_param="{_MAY_CHANGE} = {names}".'
      )

  def _may_change(self, known: set[str]) -> list[str]:
    given = self.statements.get(_MAY_CHANGE, "()")
    try:
      names = list(ast.literal_eval(given))
      is_names = all(isinstance(name, str) for name in names)
    except (ValueError, SyntaxError, TypeError):
      is_names = False
    if not is_names or given[:1] in "'\"":
      raise UserError(
        f"{_MAY_CHANGE} = {given} is no list of names; expected such as"
        " ['EPOCHS', 'run.Training.evaluate_every']."
      )
    for name in names:
      if name not in known:
        raise UserError(
          f"{_MAY_CHANGE} names {name!r}, which nothing binds"
          f"{complaints.nearest(name, known)}"
        )
    return names


def _told(changed) -> str:
  shown = "; ".join(
    f"{left} was {old or 'not set'}, is {new or 'not set'}"
    for left, old, new in changed[:5]
  )
  more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
  return shown + more


def _known_files() -> list[str]:
  found = (_ROOT / "gin").rglob("*.gin")
  return [path.relative_to(_ROOT).as_posix() for path in found]


def _find(path: str) -> pathlib.Path | None:
  for candidate in (pathlib.Path(path), _ROOT / path):
    if candidate.is_file():
      return candidate
  return None


def _parse(gin_files: Sequence[str], gin_params: Sequence[str]) -> str:
  """Parses into gin's state and returns gin's listing of the result."""
  gin.clear_config()
  for path in gin_files:
    _parse_one(path, lambda path=path: gin.parse_config_file(path))
  # A binding may use whatever the files have imported.
  imports = "\n".join(st.import_lines(gin.config_str()))
  for param in gin_params:
    _parse_one(
      f"--gin_param={param!r}",
      lambda param=param: gin.parse_config(f"{imports}\n{param}"),
    )
  # Statements stay on one line each; gin's rulers need not be as long.
  text = gin.config_str(max_line_length=10_000)
  return re.sub(r"(?m)^# =+$", "# " + 78 * "=", text)


def _parse_one(given: str, parse) -> None:
  try:
    parse()
  except (
    ValueError,
    SyntaxError,
    OSError,
    ImportError,
    AttributeError,
    NameError,
    tokenize.TokenError,
  ) as error:
    raise complaints.of_parse_error(
      error, given, gin.config_str(), _known_files()
    ) from error


def _sources(gin_files, gin_params) -> dict[str, str]:
  """Returns {left side: where it was last set}, followed through includes."""
  places = {}

  def read(path):
    block = None
    for number, line in enumerate(_find(path).read_text().splitlines(), 1):
      if match := _INCLUDE.match(line):
        read(match[1])
      elif match := _BINDING.match(line):
        indent, left = match.groups()
        if line.split("#")[0].rstrip().endswith(":"):
          block = left
        else:
          full = f"{block}.{left}" if indent and block else left
          places[full] = f"{path}, line {number}"

  for path in gin_files:
    read(path)
  for param in gin_params:
    left = param.split("=")[0].strip()
    places[left] = f"--gin_param={param!r}"
  return places
