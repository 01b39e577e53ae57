"""Tells the format of a weight file by its content, not by its name."""

from __future__ import annotations

import os
import re
import zipfile

import tensorflow as tf

from nfnets_tf.errors import UserError

# In the first of the pickles of a file of torch.save before PyTorch 1.6.
_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"

# Of the files that belong together a user may name any.
_PARTS = re.compile(r"\.(index|data-\d+-of-\d+)$|/saved_model\.pb$")
_TORCH = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face model
_KERAS = (".keras", ".h5", ".hdf5")
_SUFFIXES = {
  ".safetensors": "safetensors",
  ".pth": "torch",
  ".pt": "torch",
  ".bin": "torch",
}
_HEAD = 1024  # bytes that tell the format
# The version of the format, then the name of the program that wrote it.
_ONNX = rb"\x08[\x01-\x14]\x12.(pytorch|\w*onnx|keras)"
# What other files begin with, and what they are.
_OTHERS = {
  rb"version https://git-lfs": (
    "a pointer of Git LFS in place of a file; fetch it with `git lfs pull`"
  ),
  rb"\s*<(!doctype html|html)": "a web page; download the file itself",
  rb"\s*<(\?xml|error)": "an answer in XML, such as a server's error",
  rb"\s*[{\[]\s*[\"{\[\]}]": "a JSON file",
  rb"GGUF": "a GGUF file",
  rb"....TFL3": "a TFLite model",
  rb"\x93NUMPY": "a single NumPy array",
  _ONNX: "an ONNX model",
  rb"\x1f\x8b": "compressed by gzip; unpack it first",
  rb"BZh\d": "compressed by bzip2; unpack it first",
  rb"\xfd7zXZ\x00": "compressed by xz; unpack it first",
  rb"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it first",
  rb"7z\xbc\xaf": "a 7-Zip archive; unpack it first",
  rb"Rar!": "a RAR archive; unpack it first",
  rb"%PDF": "a PDF file",
  rb"\xff\xd8\xff|\x89PNG": "an image",
  rb".{257}ustar": "a tar archive; unpack it first",
}


def named_by(path: str) -> str:
  """Returns the checkpoint, SavedModel or file of weights that a path names.

  It may be one of a checkpoint's or SavedModel's files, or the folder of a
  Hugging Face model; any other path is returned.
  """
  exists, join = tf.io.gfile.exists, os.path.join
  whole = _PARTS.sub("", path)
  if exists(f"{whole}.index") or exists(join(whole, "saved_model.pb")):
    return whole
  return next((x for n in _TORCH if exists(x := join(path, n))), path)


def file_format(path: str) -> str:
  """Returns how the weights in a file are stored.

  Args:
    path: of a file, local or gs://.

  Returns:
    "torch", "safetensors", "keras" or "pickle".

  Raises:
    UserError: if the file is known to be something else.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    head = file.read(_HEAD)
    named_keras = path.endswith(_KERAS)
    if head.startswith(b"PK\x03\x04") and not named_keras:
      return _archive_format(path, file)
  other = _OTHERS[_ONNX] if path.endswith(".onnx") else None
  for pattern, kind in _OTHERS.items():
    if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
      other = kind
  if other or (not head and not named_keras):
    raise _unusable(path, other or "empty; delete it and download it again")
  if named_keras or head.startswith(b"\x89HDF"):
    return "keras"
  if is_legacy_torch(head):
    return "torch"
  if head[8:9] == b"{":
    return "safetensors"
  # A name decides only of what has no other sign, such as a file cut off.
  suffix = "" if head.startswith(b"\x80") else os.path.splitext(path)[1]
  return _SUFFIXES.get(suffix, "pickle")


def is_legacy_torch(head: bytes) -> bool:
  """Returns whether a file was written by torch.save before PyTorch 1.6.

  Args:
    head: its first 32 bytes or more.
  """
  return head.startswith(b"\x80") and _MAGIC in head[:32]


def _archive_format(path: str, file: tf.io.gfile.GFile) -> str:
  """Returns the format of a zip archive by the names in it."""
  try:
    names = zipfile.ZipFile(file).namelist()
  except Exception as error:  # a damaged directory can raise anything
    raise _unusable(
      path, f"a zip archive that is cut off ({error}); download it again"
    ) from error
  if any(name.endswith("/data.pkl") for name in names):
    return "torch"
  if "model.weights.h5" in names:
    return "keras"
  kind = "a zip archive without weights"
  if any(name.endswith(".npy") for name in names):
    kind = "an archive of NumPy arrays (DeepMind's .npz are pickles)"
  raise _unusable(path, kind)


def _unusable(path: str, kind: str) -> UserError:
  return UserError(f"{path!r} holds no weights: it is {kind}.")
