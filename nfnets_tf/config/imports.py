"""Modules that gin files import: installed ones, and those beside a gin file.

A module that is not on Python's path is looked for beside the gin files and in
the current directory. Their folder then goes to the end of the path, so that it
hides no installed module. A run's config.gin notes the folder, so that the run
can be resumed and exported from anywhere.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

from nfnets_tf.errors import UserError

LOGGER = logging.getLogger("nfnets_tf")

_NOTE = re.compile(r"^# (\w+) is in ('.*'|\".*\")\.$", re.MULTILINE)
# {package or module: the folder that was added to the path for it}.
_FOLDERS: dict[str, str] = {}


def import_module(name: str, place: str, folders: Sequence[str]) -> None:
  """Imports a module.

  Args:
    name: such as "my_ops" or "my_package.layers".
    place: of the import statement.
    folders: where to look for it if it is not on Python's path.

  Raises:
    UserError: if it does not exist, or fails when it is imported.
  """
  top = name.partition(".")[0]
  here = next((x for x in folders if _holds(x, top)), None)
  known = top in sys.modules or _is_installed(top)
  if here is None and not known:  # a package needs no __init__.py
    holders = (x for x in folders if os.path.isdir(os.path.join(x, top)))
    here = next(holders, None)
  if here is not None and not known:
    sys.path.append(here)
    importlib.invalidate_caches()
    _FOLDERS[top] = here
  try:
    importlib.import_module(name)
  except (Exception, SystemExit) as error:
    raise UserError(f"{place}: {_explain(name, error, folders)}") from error
  _warn_of_another(sys.modules[top], top, here, place)


def find_in_package(alias: str) -> str | None:
  """Returns the one module of this package with a last name, or None.

  Args:
    alias: such as "tfrecords", for nfnets_tf.data.tfrecords.
  """
  root = pathlib.Path(__file__).parents[1]
  if (root / alias / "__init__.py").is_file():
    return f"{root.name}.{alias}"
  files = [*root.glob(f"{alias}.py"), *root.glob(f"*/{alias}.py")]
  if len(files) != 1:
    return None
  parts = files[0].with_suffix("").relative_to(root.parent).parts
  return ".".join(parts)


def notes(modules: Iterable[str]) -> list[str]:
  """Returns comments that say where modules were found beside gin files.

  Args:
    modules: names of the modules that a configuration imports.
  """
  tops = sorted({name.partition(".")[0] for name in modules})
  return [
    f"# {top} is in {_FOLDERS[top]!r}." for top in tops if top in _FOLDERS
  ]


def noted_folders(text: str) -> list[str]:
  """Returns the folders of the `notes` in a configuration."""
  return [ast.literal_eval(match[2]) for match in _NOTE.finditer(text)]


def _holds(folder: str, top: str) -> bool:
  return any(
    os.path.isfile(os.path.join(folder, path))
    for path in (f"{top}.py", os.path.join(top, "__init__.py"))
  )


def _is_installed(top: str) -> bool:
  try:
    # The current directory counts only as one of `folders`: it is on the path
    # or not, depending on how Python was started.
    path = [x for x in sys.path if x and x != os.getcwd()]
    return importlib.machinery.PathFinder.find_spec(top, path) is not None
  except (ImportError, ValueError):
    return False


def _warn_of_another(
  module: ModuleType, top: str, here: str | None, place: str
) -> None:
  if here is None or top == "nfnets_tf":
    return
  file = getattr(module, "__file__", None)
  if file is None:  # built into Python, or a package without __init__.py
    file = next(iter(getattr(module, "__path__", ())), "Python itself")
  is_here = os.path.abspath(file).startswith(os.path.abspath(here) + os.sep)
  if not is_here:
    LOGGER.warning(
      "%s: imports %s from %s, not the one in %s; rename yours to use it.",
      place,
      top,
      file,
      here,
    )


def _explain(name: str, error: Exception, folders: Sequence[str]) -> str:
  top = name.partition(".")[0]
  if not isinstance(error, ModuleNotFoundError):
    reason = str(error).splitlines()[0] if str(error) else "no message"
    kind = type(error).__name__
    return f"importing {name} failed ({kind}: {reason}); correct the module."
  if error.name == top:
    return (
      f"cannot import {name}, which is neither installed nor in"
      f" {' or '.join(map(repr, folders))}; check the name, put {top}.py beside"
      " the gin file, add its folder to PYTHONPATH, or install the package that"
      " provides it."
    )
  if error.name and name.startswith(error.name):
    parent, _, member = error.name.rpartition(".")
    return (
      f"cannot import {name}, since {parent} has no module {member!r}; import"
      f" {parent} and name @{parent.rpartition('.')[2]}.{member}, or check the"
      " name."
    )
  return (
    f"cannot import {name}, which needs {error.name!r}; install the package"
    " that provides it."
  )
