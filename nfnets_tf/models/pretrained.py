"""The published weights: which there are, where, and the local copies."""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf

from nfnets_tf.download import cached_path, fetch, is_url
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import file_sha256
from nfnets_tf.ranges import PATH, TEXT, accepts, number, optional

IMAGENET = "imagenet"
VARIANTS = ("F0", "F1", "F2", "F3", "F4", "F5", "F6")
CACHE = "~/.cache/nfnets_tf/weights"


@accepts(url=TEXT, sha256=optional(TEXT), cache=PATH, timeout=number(above=0))
@dataclasses.dataclass(frozen=True)
class Published:
  """DeepMind's parameters of ImageNet, and where their copies are kept.

  Attributes:
    url: with "{variant}" where the variant's name stands; a path, local or
      gs://, is read where it is.
    sha256: of the file in hexadecimal digits; None checks its length alone.
    cache: local folder of what was downloaded.
    timeout: seconds that a server may be silent.
  """

  url: str = "https://storage.googleapis.com/dm-nfnets/{variant}_haiku.npz"
  sha256: str | None = None
  cache: str = CACHE
  timeout: float = 60.0

  def locate(self, path: str, variant: str | None) -> str:
    """Returns where weights are read from, downloaded if need be.

    Args:
      path: "imagenet", a URL, or a path, which is returned.
      variant: of the network, for "imagenet".

    Raises:
      UserError: if no weights of the variant were published, or the address or
        the checksum is wrong.
      RunError: if the network or the disk fails.
    """
    if path == IMAGENET:
      path = self._address(variant)
      if not is_url(path):
        return self._checked(os.path.expanduser(path))
      options = {"sha256": self.sha256, "timeout": self.timeout}
      return fetch(path, self.cache, **options)
    if is_url(path):
      return fetch(path, self.cache, timeout=self.timeout)
    return os.path.expanduser(path)

  def describe(self, path: str, variant: str | None) -> str:
    """Returns what `locate` would read, in words; downloads nothing.

    Raises:
      UserError: if no weights of the variant were published.
    """
    address = self._address(variant) if path == IMAGENET else path
    if not is_url(address):
      return address
    exists = os.path.exists(cached_path(address, self.cache))
    state = "already downloaded" if exists else "to be downloaded"
    return f"{address}, {state}"

  def _address(self, variant: str | None) -> str:
    if variant not in VARIANTS:
      raise UserError(
        f"{IMAGENET!r} has no weights of {variant}: published are those of"
        f" {', '.join(VARIANTS)}; choose one of them, or give the path of other"
        " weights."
      )
    if tf.io.gfile.exists(os.path.join(IMAGENET, "config.gin")):
      raise UserError(
        f"{IMAGENET!r} names the published weights, and a run is in a folder of"
        f" that name; write './{IMAGENET}' for the run, or rename it."
      )
    return self.url.replace("{variant}", variant)

  def _checked(self, path: str) -> str:
    """Returns the path of a file, or raises if its checksum is another."""
    if self.sha256 is not None and tf.io.gfile.exists(path):
      digest = file_sha256(path)
      if digest != self.sha256.lower():
        raise UserError(
          f"{path!r} has the SHA-256 {digest}, expected {self.sha256}; check"
          " the path and the checksum."
        )
    return path
