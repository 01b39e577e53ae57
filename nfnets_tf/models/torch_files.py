"""Reads PyTorch's files without PyTorch, and without running their code.

`torch.save` writes a pickle whose tensors refer to storages: beside it in a zip
archive, or, before PyTorch 1.6, behind it in the same file. The pickle is
opened by an unpickler with an allow-list; a tensor becomes a view of the bytes
of its storage, checked against their number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes
from nfnets_tf.models.file_formats import is_legacy_torch
from nfnets_tf.models.restricted_pickle import (
  NUMPY_NAMES,
  BoundedReader,
  Dtype,
  RefusedError,
  RestrictedUnpickler,
  StandIn,
)

_BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)
_STORAGES = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "BFloat16Storage": _BFLOAT16,
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
  "ComplexFloatStorage": "<c8",
  "ComplexDoubleStorage": "<c16",
}
_EXPECTED = (
  "expected a state dict, as torch.save(model.state_dict(), path) writes"
)


class _StorageType:
  """Stands for a class of storages; cannot be changed by a file."""

  __slots__ = ("dtype",)

  def __init__(self, dtype):
    self.dtype = np.dtype(dtype)

  def __setstate__(self, state):
    raise RefusedError("a change of a class")


@dataclasses.dataclass
class _Storage:
  """Numbers in a row, whose bytes are read when they are needed."""

  path: str  # of the file
  dtype: np.dtype
  size: int
  read: Callable[[], bytes] | None = None

  def numbers(self) -> np.ndarray:
    with _one_sentence(self.path):
      content = self.read()
      if len(content) != self.size * self.dtype.itemsize:
        raise RefusedError(
          f"{self.size:,} numbers of {self.dtype} out of {len(content):,} bytes"
        )
      return np.frombuffer(content, self.dtype)


class Tensor:
  """A view of a storage."""

  __slots__ = ("_storage", "_offset", "_strides", "shape")

  def __init__(self, storage, offset, shape, strides, *_):
    sizes = (offset, *shape, *strides)
    if (
      type(storage) is not _Storage
      or len(shape) != len(strides)
      or not all(type(size) is int and size >= 0 for size in sizes)
    ):
      raise RefusedError(f"a tensor of shape {shape!r}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    if math.prod(shape) and last >= storage.size:
      raise RefusedError(
        f"a tensor of shape {shape!r} out of {storage.size:,} numbers"
      )
    self._storage, self._offset = storage, offset
    self._strides, self.shape = strides, tuple(shape)

  def __setstate__(self, state):
    raise RefusedError("a change of a tensor")

  def numpy(self) -> np.ndarray:
    """Returns a read-only view of the numbers, of any shape.

    Raises:
      UserError: if the file has not all of them.
    """
    if not math.prod(self.shape):
      return np.zeros(self.shape, self._storage.dtype)
    numbers = self._storage.numbers()
    return np.lib.stride_tricks.as_strided(
      numbers[self._offset :],
      self.shape,
      [step * numbers.itemsize for step in self._strides],
      writeable=False,
    )


class _Mapping(dict):
  """A dictionary that ignores attributes: state dicts have `_metadata`."""

  __slots__ = ()

  def __setstate__(self, state):
    pass


class _Inert:
  """Stands for an object beside the weights, and holds nothing of it."""

  __slots__ = ()

  def __init__(self, *_, **__):
    pass

  def __setstate__(self, state):
    pass


class _AnyNumber(Dtype):
  """The type of an array beside the weights: whole numbers too."""

  __slots__ = ()
  names = (*Dtype.names, *"b1 i1 i2 i4 i8 u1 u2 u4 u8".split())


_BUILTINS = "list tuple set frozenset int float complex bool str bytes".split()
_ELEMENTS = ("float64", "float32", "float16", "bfloat16", "int64", "int32")
_NAMES = {
  **NUMPY_NAMES,
  **{("torch", name): _StorageType(x) for name, x in _STORAGES.items()},
  **{("torch", name): _Inert for name in ("device", *_ELEMENTS)},
  ("torch", "Size"): StandIn(lambda sizes: tuple(sizes)),
  ("torch._utils", "_rebuild_tensor"): StandIn(Tensor),
  ("torch._utils", "_rebuild_tensor_v2"): StandIn(Tensor),
  ("torch._utils", "_rebuild_parameter"): StandIn(lambda data, *_: data),
  ("collections", "OrderedDict"): StandIn(lambda: _Mapping()),
  ("collections", "defaultdict"): StandIn(lambda *_: _Mapping()),
  ("argparse", "Namespace"): _Inert,  # the options of timm's training script
  ("collections", "Counter"): StandIn(lambda *_: _Mapping()),
  ("numpy", "dtype"): StandIn(_AnyNumber),
}
for _module in ("builtins", "__builtin__"):
  _NAMES |= {(_module, name): _Inert for name in _BUILTINS}
  _NAMES[_module, "dict"] = StandIn(lambda *_: _Mapping())


class _Unpickler(RestrictedUnpickler):
  """Resolves the names of a file of tensors and their storages.

  Args:
    content: the pickle, and what follows it.
    storage: returns the storage of a reference's parts behind "storage".
  """

  def __init__(self, content: io.BytesIO, storage: Callable[..., _Storage]):
    size = content.getbuffer().nbytes
    super().__init__(BoundedReader(content, size), _NAMES)
    self._storage = storage

  def find_class(self, module, name):
    try:
      return super().find_class(module, name)
    except RefusedError:
      if module.split(".")[0] in ("timm", "torchvision", "__main__") or (
        module.startswith("torch.nn") and name != "Parameter"
      ):
        raise RefusedError(f"a whole model, {module}.{name}") from None
      raise

  def persistent_load(self, pid):
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
      return super().persistent_load(pid)
    return self._storage(*pid[1:])


def read_torch(path: str) -> object:
  """Reads a file of `torch.save`, of before PyTorch 1.6 too.

  Args:
    path: local or gs://, such as "dm_nfnet_f0-604f9c3a.pth".

  Returns:
    What was saved: dictionaries and lists, with a `Tensor` for every tensor.

  Raises:
    UserError: if the file asks for anything but tensors in plain containers, or
      is damaged.
  """
  content = read_bytes(path)
  read = _read_legacy if is_legacy_torch(content) else _read_archive
  with _one_sentence(path):
    return read(path, content)


@contextlib.contextmanager
def _one_sentence(path: str) -> Iterator[None]:
  """Turns what a hostile or damaged file raises into a UserError."""
  try:
    yield
  except RefusedError as error:
    raise UserError(
      f"{path!r} was not opened: it asks for {error}; {_EXPECTED}; check where"
      " this file comes from."
    ) from error
  except Exception as error:  # a damaged stream can raise anything
    raise UserError(
      f"{path!r} is not a complete file of torch.save ({error}); download it"
      " again."
    ) from error


def _read_archive(path: str, content: bytes) -> object:
  archive = zipfile.ZipFile(io.BytesIO(content))
  names = {info.filename: info for info in archive.infolist()}
  (pickled,) = (name for name in names if name.endswith("/data.pkl"))
  folder = pickled[: -len("data.pkl")]
  if f"{folder}constants.pkl" in names:
    raise RefusedError("a whole model, in TorchScript")
  if sum(info.file_size for info in names.values()) > len(content):
    raise RefusedError("more bytes than the file has")
  order = names.get(f"{folder}byteorder")
  big = order is not None and archive.read(order) == b"big"

  def storage(kind, key, _, size, *rest):
    if type(kind) is not _StorageType or rest:
      raise RefusedError(f"a storage of {kind!r}")
    if big and kind.dtype == _BFLOAT16:
      raise RefusedError("bfloat16 in big-endian order")
    dtype = kind.dtype.newbyteorder(">") if big else kind.dtype
    name = f"{folder}data/{key}"
    return _Storage(path, dtype, size, lambda: archive.read(name))

  return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _read_legacy(path: str, content: bytes) -> object:
  file, storages = io.BytesIO(content), {}

  def storage(kind, key, _, size, view=None):
    if type(kind) is not _StorageType or view is not None:
      raise RefusedError(f"a view {view!r} of a storage of {kind!r}")
    return storages.setdefault(key, _Storage(path, kind.dtype, size))

  def load():
    return _Unpickler(file, storage).load()

  _, _, system = load(), load(), load()  # the magic number, the version
  if not system["little_endian"]:
    raise RefusedError("numbers of a machine with another byte order")
  saved, keys = load(), load()
  for key in keys:
    length = int.from_bytes(file.read(8), "little")
    start, size = file.tell(), length * storages[key].dtype.itemsize
    storages[key].read = lambda i=start, n=size: content[i : i + n]
    file.seek(start + size)
  if file.tell() != len(content):
    raise EOFError("its storages end early")
  return saved
