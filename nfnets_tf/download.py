"""Downloads files once into a cache: complete, checked, or not at all.

`keras.utils.get_file` writes to the final name while it downloads, so that a
killed process leaves a part that later calls take for the file, keeps a file
of a wrong checksum, and waits for a silent server for ever.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import logging
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator

from nfnets_tf.errors import RunError, UserError, plain_message
from nfnets_tf.progress import Bar, activity

try:
  import fcntl
except ImportError:  # on Windows: two processes may download the same file
  fcntl = None

LOGGER = logging.getLogger("nfnets_tf")

_BLOCK = 1 << 20
_BY_HAND = "or download it by other means and give the path of the file instead"


def is_url(path: str) -> bool:
  """Returns whether a path is a URL of the web."""
  return path.startswith(("http://", "https://"))


def fetch(
  url: str, folder: str, *, sha256: str | None = None, timeout: float = 60.0
) -> str:
  """Returns the path of a file of the web, which is downloaded once.

  Two processes that want the same file download it once; the other one waits.

  Args:
    url: of the file; "#sha256=..." at its end is the same as `sha256`.
    folder: local, of the copies; created if it does not exist.
    sha256: checksum of the file in hexadecimal digits; None checks its length
      alone.
    timeout: seconds that a server may be silent.

  Raises:
    UserError: if the address or the checksum is wrong.
    RunError: if the network or the disk fails.
  """
  url, _, fragment = url.partition("#")
  if fragment.startswith("sha256="):
    sha256 = fragment[len("sha256=") :]
  if sha256 is not None:
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
      raise UserError(
        f"sha256 = {sha256!r} is no SHA-256; expected 64 hexadecimal digits."
      )
  if "://" in folder:
    raise UserError(f"downloads go to a local folder, not to {folder!r}.")
  path = cached_path(url, folder)
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if _is_complete(path, sha256):
      return path
    with _lock(path, url):
      if not _is_complete(path, sha256):
        _download(url, path, sha256, timeout)
  except OSError as error:
    raise RunError(
      f"{path!r} cannot be written ({plain_message(error)}); free some space or"
      f" choose another folder for downloads, {_BY_HAND}."
    ) from error
  return path


def cached_path(url: str, folder: str) -> str:
  """Returns where `fetch` keeps a file; another URL has another path."""
  url = url.partition("#")[0]
  name = os.path.basename(urllib.parse.urlsplit(url).path)
  name = "file" if name in ("", ".", "..") else name
  digest = hashlib.sha256(url.encode()).hexdigest()[:12]
  return os.path.join(os.path.expanduser(folder), digest, name)


def _is_complete(path: str, sha256: str | None) -> bool:
  """Returns whether a file is there, with its checksum if one is given."""
  if not os.path.exists(path):
    return False
  if sha256 is None:
    return True
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  is_same = digest.hexdigest() == sha256
  if not is_same:
    LOGGER.warning(
      "%r has another SHA-256 than the given one; downloading it again.", path
    )
  return is_same


@contextlib.contextmanager
def _lock(path: str, url: str) -> Iterator[None]:
  """Holds the lock of a file; a killed process loses it."""
  if fcntl is None:
    yield
    return
  with open(f"{path}.lock", "wb") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      LOGGER.info("Another process downloads %s; waiting for it.", url)
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
      yield
      return
    for partial in glob.glob(f"{glob.escape(path)}.*.partial"):
      os.remove(partial)  # of a process that was killed
    yield


def _download(url: str, path: str, sha256: str | None, timeout: float) -> None:
  """Downloads a file and renames it when it is complete."""
  partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
  try:
    with open(partial, "wb") as file:
      digest = _receive(url, file, sha256, timeout)
    if sha256 not in (None, digest):
      raise UserError(
        f"{url} has the SHA-256 {digest}, expected {sha256}; nothing was kept:"
        " check the address and the checksum."
      )
    os.replace(partial, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(partial)


def _receive(url: str, file, sha256: str | None, timeout: float) -> str:
  """Writes what a server sends to a file; returns its SHA-256."""
  digest, received = hashlib.sha256(), 0
  with _network_errors(url, timeout):
    response = urllib.request.urlopen(url, timeout=timeout)
  size = response.length
  with response, _shown(url, size) as advance:
    if response.headers.get_content_type() == "text/html":
      raise UserError(
        f"{url} is a web page; expected the address of a file, or the network"
        " wants a login first."
      )
    while True:
      with _network_errors(url, timeout):
        block = response.read1(_BLOCK)
      if not block:
        break
      file.write(block)
      digest.update(block)
      received += len(block)
      advance(len(block))
  if size not in (None, received):
    raise RunError(
      f"{url} was cut off after {received:,} of {size:,} bytes; rerun the same"
      f" command, {_BY_HAND}."
    )
  if not received:
    raise RunError(
      f"{url} delivered an empty file; check the address, {_BY_HAND}."
    )
  if size is None and sha256 is None and not response.chunked:
    raise UserError(
      f"{url} comes without its length, and could be cut off unnoticed; give"
      " its checksum as #sha256=... at the end of the address."
    )
  return digest.hexdigest()


@contextlib.contextmanager
def _shown(url: str, size: int | None) -> Iterator[Callable[[int], object]]:
  """Shows a download; yields a function that counts further bytes.

  As other work where a log is shown, else as a bar, since then it is part of no
  run but of a program or a notebook.
  """
  text = f"Downloading {url}" + (f" ({size / 1e6:,.0f} MB)" if size else "")
  if LOGGER.isEnabledFor(logging.INFO):
    LOGGER.info("%s.", text)
    with activity(text, size) as shown:
      yield shown.advance
    return
  name = os.path.basename(urllib.parse.urlsplit(url).path)
  with Bar(desc=name, total=size, unit="B", unit_scale=True) as bar:
    yield bar.update


@contextlib.contextmanager
def _network_errors(url: str, timeout: float) -> Iterator[None]:
  """Turns what the network raises into one sentence."""
  try:
    yield
  except urllib.error.HTTPError as error:
    error.close()
    kind = RunError if error.code >= 500 else UserError
    raise kind(
      f"{url} was not delivered: {error.code} {error.reason}; check the"
      f" address, {_BY_HAND}."
    ) from error
  except socket.timeout as error:  # TimeoutError since Python 3.10
    raise _silent(url, timeout) from error
  except (OSError, http.client.HTTPException) as error:
    reason = getattr(error, "reason", error)
    if isinstance(reason, socket.timeout):
      raise _silent(url, timeout) from error
    raise RunError(
      f"{url} cannot be downloaded ({reason}); check the network and rerun the"
      f" same command, {_BY_HAND}."
    ) from error
  except ValueError as error:
    raise UserError(
      f"{url!r} is no address of the web ({error}); expected https://..."
    ) from error


def _silent(url: str, timeout: float) -> RunError:
  return RunError(
    f"{url} sent nothing for {timeout:g} seconds; check the network and rerun"
    f" the same command, {_BY_HAND}."
  )
