"""Opens pickles without running anything that they ask for.

A pickle may call any function when it is opened, set attributes of what it
names and, with NumPy's own types, make an array of pointers out of bytes. So
only an allow-list of names is resolved, each to a stand-in that holds no state
and makes only floats; everything else is refused by name.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping

import numpy as np


class BoundedReader:
  """A file as `pickle` needs it, which never reads beyond the file's end.

  Args:
    file: has `read`, `readline` and `tell`.
    size: of the file, in bytes.
  """

  def __init__(self, file, size: int):
    self._file = file
    self._size = size

  def read(self, size: int) -> bytes:
    # A forged length would otherwise allocate as much before it fails.
    return self._file.read(min(size, self._size - self._file.tell()))

  def readline(self) -> bytes:
    return self._file.readline()


class RefusedError(Exception):
  """Names the object that a file asks for and is refused."""


class StandIn:
  """Stands for a function that a pickle names; cannot be changed by it."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable):
    self._function = function

  def __call__(self, *arguments):
    return self._function(*arguments)

  def __setstate__(self, state):
    raise RefusedError("a change of a function")


class Dtype:
  """The type of an array's elements: floats; only the byte order is set."""

  __slots__ = ("dtype",)
  names = ("f2", "f4", "f8")

  def __init__(self, name, align=False, copy=True):
    if name not in self.names:
      raise RefusedError(f"elements of type {name!r} instead of floats")
    self.dtype = np.dtype(name)

  def __setstate__(self, state):
    _, order, *rest = state
    if order not in ("<", ">", "=", "|") or rest != [*(None,) * 3, -1, -1, 0]:
      raise RefusedError(f"elements described by {state!r}")
    self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
  """An array whose bytes come with its state.

  Attributes:
    array: floats of any shape.
  """

  __slots__ = ("array",)

  def __setstate__(self, state):
    _, shape, dtype, fortran, content = state
    self.array = _array(content, dtype, shape, "F" if fortran else "C").array


def _array(content, dtype, shape, order="C") -> PickledArray:
  """Returns an array of exactly the bytes that its shape needs."""
  if not isinstance(dtype, Dtype) or type(content) not in (bytes, bytearray):
    raise RefusedError(f"an array of {type(content).__name__}")
  if type(shape) is not tuple or not all(
    type(size) is int and size >= 0 for size in shape
  ):
    raise RefusedError(f"an array of shape {shape!r}")
  if math.prod(shape) * dtype.dtype.itemsize != len(content):
    raise RefusedError(
      f"an array of shape {shape!r} out of {len(content)} bytes"
    )
  leaf = PickledArray()
  flat = np.frombuffer(content, dtype.dtype)
  leaf.array = flat.reshape(shape, order="F" if order == "F" else "C")
  return leaf


def _encode(text, encoding) -> bytes:
  """Returns bytes, as pickles of protocol 2 write them."""
  if type(text) is not str or encoding != "latin1":
    raise RefusedError(f"bytes in the encoding {encoding!r}")
  return text.encode("latin1")


def _refuse_ndarray(*arguments):
  raise RefusedError("a call of numpy.ndarray")  # named, but never called


NUMPY_NAMES = {
  ("collections", "OrderedDict"): StandIn(lambda: {}),
  ("_codecs", "encode"): StandIn(_encode),
  ("numpy", "ndarray"): StandIn(_refuse_ndarray),
  ("numpy", "dtype"): StandIn(Dtype),
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
  NUMPY_NAMES |= {
    # Protocols up to 4 make an empty array first and then set its state.
    (f"{_core}.multiarray", "_reconstruct"): StandIn(lambda *_: PickledArray()),
    (f"{_core}.multiarray", "scalar"): StandIn(
      lambda dtype, content: _array(content, dtype, ())
    ),
    (f"{_core}.numeric", "_frombuffer"): StandIn(_array),
  }


class RestrictedUnpickler(pickle.Unpickler):
  """Resolves an allow-list of names and refuses the rest.

  Args:
    file: a `BoundedReader`, which is read no further than the pickle's end.
    names: {(module, name): stand-in}.

  Raises:
    RefusedError: on loading, if the pickle names anything else.
  """

  def __init__(self, file: BoundedReader, names: Mapping = NUMPY_NAMES):
    super().__init__(file)
    self._names = names

  def find_class(self, module, name):
    try:
      return self._names[module, name]
    except KeyError:
      raise RefusedError(f"{module}.{name}") from None

  def persistent_load(self, pid):
    raise RefusedError(f"a reference to {pid!r}")
