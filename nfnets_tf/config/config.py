"""Configurations: gin files and bindings, parsed, checked and built.

The library does not depend on gin; gin files choose and bind. The job that
they name is bound to `config.Launch.job`.
"""

from __future__ import annotations

import copy
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

import gin
from nfnets_tf.config import bindings as bindings_lib
from nfnets_tf.config import error_messages
from nfnets_tf.config.bindings import GRID, Bindings, Macro
from nfnets_tf.config.checks import JOB, check, check_ranges
from nfnets_tf.config.grid import read_grid
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import find_run_dir, read_bytes, read_run_data
from nfnets_tf.ranges import PATH, TEXT, accepts, built, each, optional

if TYPE_CHECKING:
  from nfnets_tf.jobs.job import Job

LOGGER = logging.getLogger("nfnets_tf")

_SWEEP = "config.Launch.sweep"
_BASE_RUN = "config.Launch.base_run"
_ALLOW_CHANGES = "config.Launch.allow_changes"


@accepts(
  job=built("@train.TrainJob()"),
  allow_changes=each(TEXT),
  sweep=optional(built("@sweep.Sweep()")),
  base_run=optional(PATH),
)
class Launch:
  """The root of every configuration.

  Args:
    job: what to run.
    allow_changes: names of macros and parameters, such as "EPOCHS", whose
      values may differ when a run is resumed.
    sweep: runs the job at many points; a `scaling.sweep.Sweep`, or None.
    base_run: a path in the work directory of a run, whose config.gin is read
      before the gin files that are given; or None.
  """

  def __init__(
    self,
    *,
    job: Job,
    allow_changes: Sequence[str] = (),
    sweep=None,
    base_run: str | None = None,
  ):
    self.job, self.sweep, self.base_run = job, sweep, base_run
    self.allow_changes = tuple(allow_changes)


class Configuration:
  """Gin files and bindings, parsed and checked.

  Args:
    gin_files: the run's file, then overlays; later ones win.
    gin_params: single bindings, such as "EPOCHS = 2"; they win over files.

  Attributes:
    bindings: all of them, and where each was set.
    run_folder: work directory of the run that `base_run` names, or None.
    workdir: the default work directory.

  Raises:
    UserError: if a name does not exist, is missing or is not used.
  """

  def __init__(self, gin_files: Sequence[str], gin_params: Sequence[str] = ()):
    if not gin_files:
      raise UserError(
        "no gin file was given; name a run, such as"
        " --gin_file=gin/quickstart.gin."
      )
    self._files, self._params = tuple(gin_files), tuple(gin_params)
    try:
      self.bindings = bindings_lib.parse(self._files, self._params)
    except RecursionError as error:
      raise UserError(
        f"{gin_files[0]} is included by a file that it includes; remove an"
        " include statement."
      ) from error
    self.run_folder = _find_base_run(self.bindings)
    self._base = None
    if self.run_folder:
      path = os.path.join(self.run_folder, "config.gin")
      self._base = path, read_bytes(path).decode()
      self.bindings = bindings_lib.parse(self._files, self._params, self._base)
      if self.is_sweep:
        raise UserError(
          f"{self.run_folder!r} is the work directory of a sweep, not of a run;"
          " name one of the points below it."
        )
    # A sweep is checked at its first point, and the values of all.
    points = read_grid(self.bindings)
    for point in reversed(points):
      self._set(point)
      check_ranges(self.bindings)
    check(self.bindings)
    if JOB not in self.bindings:
      raise UserError(
        f"{gin_files[0]} names no job; bind {JOB}, as gin/base/run.gin does."
      )
    self.workdir = (
      self.run_folder or f"runs/{pathlib.PurePath(gin_files[0]).stem}"
    )

  @property
  def text(self) -> str:
    """The resolved configuration as gin statements."""
    return self.bindings.to_text()

  @property
  def statements(self) -> dict[str, str]:
    """{name: value as gin text} of every macro and parameter."""
    return self.bindings.to_strings()

  @property
  def is_sweep(self) -> bool:
    """True if the job is run at many points."""
    return self.bindings.get(_SWEEP) is not None

  def at(self, point: Mapping) -> Configuration:
    """Returns the configuration of one point of the sweep, without the sweep.

    Args:
      point: {macro: value}.

    Raises:
      UserError: if the job does not use a macro of the point.
    """
    single = copy.copy(self)
    single.bindings = self.bindings.without(_sweep_names(self.bindings))
    single._set(point)
    check(single.bindings)
    return single

  def part(self, name: str) -> dict[str, str]:
    """Returns {name: value} of all that a parameter's value is built of."""
    names = self.bindings.dependencies(name)
    return {n: v for n, v in self.statements.items() if n in names}

  def _set(self, point: Mapping) -> None:
    for name, value in point.items():
      place = self.bindings.places.get(name, GRID)
      self.bindings.set(name, value, place)

  def differences(self) -> list[str]:
    """Returns a line for each binding that differs from the base.

    The base is the `base_run`, or the files that the first gin file includes.
    """
    includes = self.bindings.includes.get(self._files[0], ())
    files = () if self._base else includes
    base = bindings_lib.parse(files, base=self._base).to_strings()
    changes = bindings_lib.find_changes(base, self.statements)
    return [
      f"{name} = {now}" + ("" if before is None else f"  (base: {before})")
      for name, before, now in changes
    ]

  def build_job(self) -> Job:
    """Builds the job.

    Raises:
      UserError: if a value is refused.
    """
    return self._build().job

  def build_sweep(self):
    """Builds the sweep, None if there is none.

    Raises:
      UserError: if a value is refused.
    """
    return self._build().sweep

  def _build(self) -> Launch:
    gin.clear_config()  # gin holds one configuration per process
    try:
      gin.parse_config(self.text)
      return gin.get_configurable(Launch)()
    except RecursionError as error:
      raise UserError(
        "the configuration cannot be built: a value is built of itself, as in"
        " EPOCHS = @schedules.steps_for_epochs(); correct the value that was"
        " bound last."
      ) from error
    except (TypeError, ValueError, ArithmeticError) as error:
      raise error_messages.explain_build_error(error) from error

  def check_workdir(self, path: str) -> None:
    """Checks that a work directory belongs to this configuration.

    Args:
      path: its config.gin, which need not exist.

    Raises:
      UserError: if it was made with another configuration; names the
        differences.
    """
    if not tf.io.gfile.exists(path):
      return
    before = bindings_lib.parse([], base=(path, read_bytes(path).decode()))
    # A sweep may grow; each of its points keeps its own configuration.
    free = {name for point in read_grid(self.bindings) for name in point}
    if self.is_sweep:
      free |= _sweep_names(self.bindings) | _sweep_names(before)
      free |= self.bindings.dependencies(_SWEEP)
    allowed = self._allowed_changes({*before, *self.bindings})
    changes = bindings_lib.find_changes(before.to_strings(), self.statements)
    free.add(_ALLOW_CHANGES)
    changes = [change for change in changes if change[0] not in free]
    refused = [change for change in changes if change[0] not in allowed]
    if refused:
      names = sorted(allowed | {change[0] for change in refused})
      raise UserError(
        f"the work directory was made with another configuration ({path}:"
        f" {error_messages.describe_changes(refused)}); choose another"
        " --workdir, restore the old values, or allow the change with"
        f' --gin_param="{_ALLOW_CHANGES} = {names}".'
      )
    if changes:
      LOGGER.info(
        "Resuming with a changed configuration: %s.",
        error_messages.describe_changes(changes),
      )

  def _allowed_changes(self, known: set[str]) -> set[str]:
    names = ()
    if _ALLOW_CHANGES in self.bindings:
      _, names = self.bindings.value(_ALLOW_CHANGES)
    for name in names:
      if name not in known:
        raise UserError(
          f"{_ALLOW_CHANGES} names {name!r}, which is not bound"
          f"{error_messages.nearest(name, known)}"
        )
    return set(names)


def bound_arguments(target: Callable) -> dict[str, object]:
  """Returns {parameter: value} that the gin bindings give a class or function.

  Args:
    target: what a reference such as @classifier.Classifier gives a job; of what
      gin does not know, nothing is bound.
  """
  # What gin gives for a class is a subclass of it, which gin does not know.
  for known in getattr(target, "__mro__", (target,)):
    try:
      return gin.get_bindings(known)
    except ValueError:
      continue
  return {}


def _sweep_names(bindings: Bindings) -> set[str]:
  """Returns the names that the job at a single point does not depend on."""
  names = bindings.in_package("nfnets_tf.scaling")
  names |= bindings.dependencies(_SWEEP)
  names |= {name for name in bindings if name.startswith(f"{GRID}.")}
  return names - bindings.dependencies(JOB)


def _find_base_run(bindings: Bindings) -> str | None:
  """Returns the work directory that `config.Launch.base_run` points into.

  None where no run is named, or where the gin files configure one themselves.

  Raises:
    UserError: if it is not a path, another release began the run, or nothing
      configures a run.
  """
  value = bindings.get(_BASE_RUN)
  for _ in bindings:  # a macro may refer to another one
    if isinstance(value, Macro):
      value = bindings.get(value.name)  # a missing macro is reported later
  if value is None:
    return None
  if not isinstance(value, str):
    raise UserError(
      f"{value!r} is not a checkpoint; expected a path in quotes, such as"
      " 'runs/quickstart'."
    )
  if folder := find_run_dir(value):
    read_run_data(folder)  # another layout's config.gin cannot be read
    return folder
  if not any(name.startswith("train.TrainJob.") for name in bindings):
    raise UserError(
      f"{value!r} is not in the work directory of a run, whose config.gin would"
      " define its network and data; name a run's gin file before this one,"
      " such as --gin_file=gin/finetune_imagenet.gin."
    )
  return None
