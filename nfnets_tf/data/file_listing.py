"""Lists the image files of a folder: what is data, and each file once.

Local folders are read with `os`, which knows links and special files; others
with `tf.io.gfile`, whose file systems have neither.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.errors import UserError, plain_message

LOGGER = logging.getLogger("nfnets_tf")

# Folders and files of operating systems, file servers and tools, in lower case.
# Those that begin with a dot are hidden anyway; a list of files may name them.
_TOOLS = frozenset(
  {
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    ".appledouble",
    ".documentrevisions-v100",
    ".ds_store",
    ".fseventsd",
    ".git",
    ".hg",
    ".ipynb_checkpoints",
    ".picasaoriginals",
    ".snapshot",
    ".spotlight-v100",
    ".stversions",
    ".svn",
    ".temporaryitems",
    ".thumbnails",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "__macosx",
    "__pycache__",
    "_vti_cnf",
    "desktop.ini",
    "ehthumbs.db",
    "found.000",
    "icon\r",
    "lost+found",
    "lost.dir",
    "network trash folder",
    "picasa.ini",
    "system volume information",
    "temporary items",
    "thumbs.db",
    "~snapshot",
  }
)

HIDDEN = "hidden or left behind by a tool"
SPECIAL = "neither files nor folders"
CYCLE = "links to a folder that holds them"
REPEATED = "second paths to what is listed already"


class ListedFile(NamedTuple):
  """A file that was found.

  Attributes:
    path: below the directory.
    by_link: whether the path leads through a link.
  """

  path: str
  by_link: bool


class _Entry(NamedTuple):
  path: str
  is_folder: bool
  is_link: bool


class Listing:
  """Lists the folders and files below a directory that are data.

  What is hidden, left behind by tools or no regular file is left out and
  counted; `report` says so in one line.

  Args:
    directory: local, or of a file system of `tf.io.gfile`; may be a link.
  """

  def __init__(self, directory: str):
    self.directory = directory
    self._ignored: dict[str, dict[str, str]] = {}

  def ignore(self, reason: str, path: str, same_as: str = "") -> None:
    """Counts a path below the directory that is not data, once a reason."""
    self._ignored.setdefault(reason, {})[path] = same_as

  def report(self) -> None:
    """Logs a warning, if anything was left out."""
    parts = []
    for reason, paths in self._ignored.items():
      path, same_as = next(iter(paths.items()))
      example = f"{printable(path)!r}"
      if same_as not in ("", path):
        example += f" (the same as {printable(same_as)!r})"
      parts.append(f"{len(paths):,} {reason}, such as {example}")
    if parts:
      LOGGER.warning("Ignored in %r: %s.", self.directory, "; ".join(parts))

  def subfolders(self, folder: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted.

    Links to a folder above them are left out.

    Raises:
      UserError: if the folder cannot be read, or a name is not UTF-8.
    """
    paths = []
    for entry in self._entries(folder):
      if entry.is_link and entry.is_folder and self._is_cycle(entry.path):
        self.ignore(CYCLE, entry.path)
      elif entry.is_folder:
        paths.append(entry.path)
    for path in paths:
      if printable(path) != path:
        raise UserError(
          f"the name of the folder {printable(path)!r} in {self.directory!r} is"
          " not UTF-8, so that no class can be called by it; rename it."
        )
    return list(map(os.path.basename, paths))

  def loose_files(self, folder: str) -> list[str]:
    """Returns the paths of the files that are directly in a folder, sorted."""
    entries = self._entries(folder)
    return [entry.path for entry in entries if not entry.is_folder]

  def files(self, folder: str) -> list[ListedFile]:
    """Lists the files in a folder and below, in an order fixed by the names.

    Links to folders are followed last, each folder is entered once, and none
    that holds the link itself.

    Raises:
      UserError: if a folder cannot be read.
    """
    by_link = is_local(self.directory) and os.path.islink(self._join(folder))
    links, visited = [], {}
    files = list(self._walk(folder, by_link, visited, links))
    for link in links:  # grows meanwhile
      if self._is_cycle(link, folder):
        self.ignore(CYCLE, link)
      else:
        files += self._walk(link, True, visited, links)
    return files

  def _is_cycle(self, link: str, *holders: str) -> bool:
    """Returns whether a link leads to a folder that holds it."""
    real = self._real(link)
    holders = "", os.path.dirname(link), *holders
    return any(_holds(real, self._real(holder)) for holder in holders)

  def _walk(
    self,
    folder: str,
    by_link: bool,
    visited: dict[str, str],
    links: list[str],
  ) -> Iterator[ListedFile]:
    first = visited.setdefault(self._real(folder), folder)
    if first != folder:
      self.ignore(REPEATED, folder, first)
      return
    entries = self._entries(folder)
    for entry in entries:
      if not entry.is_folder:
        yield ListedFile(entry.path, by_link or entry.is_link)
    for entry in entries:
      if entry.is_folder and entry.is_link:
        links.append(entry.path)
      elif entry.is_folder:
        yield from self._walk(entry.path, by_link, visited, links)

  def _join(self, path: str) -> str:
    return os.path.join(self.directory, path)

  def _real(self, path: str) -> str:
    path = self._join(path)
    return os.path.realpath(path) if is_local(path) else path

  def _entries(self, folder: str) -> list[_Entry]:
    """Returns what is data in a folder, sorted by name."""
    try:
      found = list(_scan(self._join(folder)))
    except (OSError, tf.errors.OpError) as error:
      raise UserError(
        f"the folder {printable(self._join(folder))!r} cannot be listed"
        f" ({plain_message(error)}); make it readable, or move it elsewhere."
      ) from error
    entries = []
    for name, is_folder, is_link, is_special in sorted(found):
      path = os.path.join(folder, name)
      if name.startswith(".") or is_of_a_tool(name):
        self.ignore(HIDDEN, path)
      elif is_special:
        self.ignore(SPECIAL, path)
      else:
        entries.append(_Entry(path, is_folder, is_link))
    return entries


def _scan(folder: str) -> Iterator[tuple[str, bool, bool, bool]]:
  """Yields (name, is a folder, is a link, is neither folder nor file)."""
  if not is_local(folder):
    for name in map(_without_slash, tf.io.gfile.listdir(folder)):
      is_folder = tf.io.gfile.isdir(os.path.join(folder, name))
      yield name, is_folder, False, False
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      is_folder, is_link = entry.is_dir(), entry.is_symlink()
      # A broken link is listed: reading it says so.
      is_broken = is_link and not os.path.exists(entry.path)
      is_special = not (is_folder or is_broken or entry.is_file())
      yield entry.name, is_folder, is_link, is_special


def _without_slash(name: str) -> str:
  return name.rstrip("/")


def _holds(folder: str, other: str) -> bool:
  """Returns whether one real path is another one or above it."""
  return os.path.commonpath([folder, other]) == folder


def is_local(path: str) -> bool:
  """Returns whether a path is of a file system of the operating system."""
  return "://" not in path


def printable(path: str) -> str:
  """Returns a path, any bytes of it that are not UTF-8 replaced."""
  return path.encode(errors="surrogateescape").decode(errors="replace")


def is_of_a_tool(path: str) -> bool:
  """Returns whether tools leave such a path behind, by its names."""
  names = path.lower().replace("\\", "/").split("/")
  return any(
    name in _TOOLS or name.startswith(("._", ".trash-")) for name in names
  )


def is_readable_file(path: str) -> bool:
  """Returns False for what exists and is no file, such as a pipe."""
  return not is_local(path) or not os.path.exists(path) or os.path.isfile(path)


def find_repeated(
  directory: str, files: Sequence[ListedFile]
) -> dict[str, str]:
  """Returns {path: another path of the same file} of all but one of its paths.

  The same file is one that links, hard links or another spelling lead to. The
  path that stays leads through no link, if there is such a one.
  """
  repeated, paths = {}, {}
  if not is_local(directory):
    return repeated
  for file in sorted(files, key=lambda file: file.by_link):
    path = os.path.join(directory, file.path)
    try:
      status = os.stat(path)
    except OSError:
      continue  # reported when it is read
    first = paths.setdefault((status.st_dev, status.st_ino), file.path)
    # Some network file systems give several files the same number.
    if first != file.path and (
      status.st_nlink > 1
      or os.path.realpath(path)
      == os.path.realpath(os.path.join(directory, first))
    ):
      repeated[file.path] = first
  return repeated


def describe_file(directory: str, path: str) -> str:
  """Returns a file's path, size in bytes and modification time in ns."""
  full = os.path.join(directory, path)
  try:
    if is_local(full):
      status = os.stat(full)
      size, time = status.st_size, int(status.st_mtime) * 10**9
    else:
      status = tf.io.gfile.stat(full)
      size, time = status.length, status.mtime_nsec
  except (OSError, tf.errors.NotFoundError):
    return f"{path} is missing"  # a broken link: reported when it is read
  return f"{path} {size} {time}"
