"""Floor 3: configuration; the only package that imports gin.

Gin files choose and bind; the library knows nothing of them. A gin file names
the job at `config.Launch.job`.
"""

from __future__ import annotations

import copy
import importlib.util  # noqa: F401  gin 0.5.0 uses it without importing it
import pathlib
import re
import tokenize
from collections.abc import Mapping, Sequence

import tensorflow as tf

import gin
from nfnets_tf.config import changes, complaints, sources
from nfnets_tf.config import statements as st
from nfnets_tf.config.axes import grid as grid
from nfnets_tf.config.axes import read_grid
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes

_JOB, _SWEEP = "config.Launch.job", "config.Launch.sweep"
_MAY_CHANGE = "config.Launch.may_change"

gin.add_config_file_search_path(str(sources.ROOT))


class Launch:
  """The root of every configuration.

  Args:
    job: has `plan()` and `run(workdir, ...)`; see `jobs.train.TrainJob`.
    may_change: names of macros and parameters, such as "EPOCHS", in which a
      work directory's run may go on with other values than it began with.
    sweep: what does the job at many points; a `scaling.sweep.Sweep`, or None.
    of_run: a path in the work directory of a run, whose config.gin is read
      before the gin files that are given; or None.
  """

  def __init__(
    self,
    *,
    job,
    may_change: Sequence[str] = (),
    sweep=None,
    of_run: str | None = None,
  ):
    self.job, self.sweep, self.of_run = job, sweep, of_run
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
    for path in gin_files:
      if sources.find(path) is None:
        raise complaints.no_such_file(path, sources.known_files())
    self._given = tuple(gin_files), tuple(gin_params)
    self.text = _parse(*self._given)
    self.statements = st.split_statements(self.text)
    self.run_folder, self._base = sources.base_run(self.statements)
    if self._base:
      self.text = self._parse_on_base(*self._given)
      self.statements = st.split_statements(self.text)
      self._check_base()
    places = sources.places(gin_files, gin_params)
    # A sweep's own configuration is that of its first point.
    for point in read_grid(self.statements)[:1]:
      self._set(point)
      places = {**{name: "config.grid" for name in point}, **places}
    complaints.check(self.text, places)
    if _JOB not in self.statements:
      raise UserError(
        f"{gin_files[0]} names no job; bind {_JOB}, as gin/base/run.gin does."
      )
    name = pathlib.PurePath(gin_files[0]).stem
    self.workdir = self.run_folder or f"runs/{name}"

  def _parse_on_base(self, gin_files, gin_params) -> str:
    place = f"{self.run_folder}/config.gin"
    return _parse(gin_files, gin_params, base=(place, self._base))

  def _check_base(self) -> None:
    if self.is_sweep:
      raise UserError(
        f"{self.run_folder!r} is a sweep's folder and not a run's; name one of"
        " the points below it."
      )

  @property
  def is_sweep(self) -> bool:
    """Whether the job is to be done at many points."""
    return self.statements.get(_SWEEP, "None") != "None"

  def at(self, point: Mapping) -> Configuration:
    """Returns the configuration of a point {macro: value} without the sweep.

    Raises:
      UserError: if a macro of the point is not one of the job's.
    """
    alone = copy.copy(self)
    alone.text = _listing(st.without(self.text, _of_sweep(self.text)))
    alone._set(point)
    complaints.check(alone.text, {name: "config.grid" for name in point})
    return alone

  def part(self, left: str) -> dict[str, str]:
    """Returns all statements that a left side's value is built of."""
    return {x: self.statements[x] for x in st.reached(self.statements, left)}

  def _set(self, point: Mapping) -> None:
    lines = [f"{name} = {value!r}" for name, value in point.items()]
    self.text = _listing("\n".join([self.text, *lines]))
    self.statements = st.split_statements(self.text)

  def differences(self) -> list[str]:
    """Returns a line for each binding that differs from what the run includes.

    The base of a run is what its first gin file includes, by itself; of what is
    done to a run it is that run.
    """
    files, _ = self._given
    includes = [] if self._base else sources.includes_of(files[0])
    base = st.split_statements(self._parse_on_base(includes, ()))
    return [
      f"{left} = {after}" + ("" if before is None else f"  (base: {before})")
      for left, before, after in st.differences(base, self.statements)
    ]

  def build_job(self):
    """Builds the job and returns it.

    Raises:
      UserError: if a binding's value is refused.
    """
    return self._build().job

  def build_sweep(self):
    """Builds the sweep and returns it, None if there is none.

    Raises:
      UserError: if a binding's value is refused.
    """
    return self._build().sweep

  def _build(self) -> Launch:
    _listing(self.text)  # gin holds one configuration at a time
    try:
      return gin.get_configurable(Launch)()
    except (TypeError, ValueError, ArithmeticError) as error:
      raise complaints.of_build_error(error) from error

  def check_workdir(self, path: str) -> None:
    """Checks that a work directory was not made with another configuration.

    Args:
      path: of the work directory's config.gin, which need not exist.

    Raises:
      UserError: if it holds another configuration; it shows the differences.
    """
    # A sweep may grow; each of its points keeps to its own configuration.
    free = {name for point in read_grid(self.statements) for name in point}
    if self.is_sweep:
      before = read_bytes(path).decode() if tf.io.gfile.exists(path) else ""
      free |= _of_sweep(self.text) | _of_sweep(before)
      free |= st.reached(self.statements, _SWEEP)
    changes.check_kept(path, self.statements, may_change=_MAY_CHANGE, free=free)


def _of_sweep(text: str) -> set[str]:
  """Returns the left sides that the job at a point has nothing of."""
  all_of_it = st.split_statements(text)
  found = st.of_package(text, "nfnets_tf.scaling")
  return (found | st.reached(all_of_it, _SWEEP)) - st.reached(all_of_it, _JOB)


def _parse(
  gin_files: Sequence[str],
  gin_params: Sequence[str],
  base: tuple[str, str] = ("", ""),
) -> str:
  """Parses into gin's state and returns gin's listing of the result.

  Args:
    gin_files: paths.
    gin_params: single bindings.
    base: (path, text) of what is parsed before the files.
  """
  gin.clear_config()
  _parse_one(base[0], lambda: gin.parse_config(base[1]))
  for path in gin_files:
    _parse_one(path, lambda path=path: gin.parse_config_file(path))
  # A binding may use whatever the files have imported.
  imports = "\n".join(st.import_lines(gin.config_str()))
  for param in gin_params:
    _parse_one(
      f"--gin_param={param!r}",
      lambda param=param: gin.parse_config(f"{imports}\n{param}"),
    )
  return _listing()


def _listing(text: str | None = None) -> str:
  """Returns gin's listing of its configuration, or of another one's text."""
  if text is not None:
    gin.clear_config()
    gin.parse_config(text)
  # Statements stay on one line each; gin's rulers need not be as long.
  listing = gin.config_str(max_line_length=100_000)
  return re.sub(r"(?m)^# =+$", "# " + 78 * "=", listing)


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
      error, given, gin.config_str(), sources.known_files()
    ) from error
