"""A reader of pickled arrays that can do nothing else.

A pickle may call any function when it is opened, set any attribute and, with
NumPy's own types, make an array of pointers out of bytes. What a file names is
therefore an inert stand-in here, and everything else is refused by name.
"""

import math
import pickle
from typing import BinaryIO

import numpy as np


class RefusedError(Exception):
  """Names what a file asks for and does not get."""


class _Inert:
  """What a file gets in place of a function or class: it changes nothing.

  A state that a file wants to set comes by `__setstate__`.
  """

  __slots__ = ()

  def __setstate__(self, state):
    raise RefusedError(f"another state of {type(self).__name__[1:]}")


class _Ndarray(_Inert):
  """Stands for the class; a file names it and needs not call it."""

  __slots__ = ()

  def __call__(self, *arguments):
    raise RefusedError("a call of numpy.ndarray")


class _Encode(_Inert):
  """What protocol 2 calls to make bytes, for the one encoding it uses."""

  __slots__ = ()

  def __call__(self, text, encoding):
    if type(text) is not str or encoding != "latin1":
      raise RefusedError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


class _OrderedDict(_Inert):
  __slots__ = ()

  def __call__(self):
    return {}


class _Dtype(_Inert):
  """Makes the type of an array's elements: floats alone."""

  __slots__ = ()

  def __call__(self, name, align=False, copy=True):
    if name not in ("f2", "f4", "f8"):
      raise RefusedError(f"elements of the type {name!r}; floats are admitted")
    return _Float(name)


class _Float(_Inert):
  """The type of an array's elements; a file may set the order of its bytes."""

  __slots__ = ("dtype",)

  def __init__(self, name):
    self.dtype = np.dtype(name)

  def __setstate__(self, state):
    order = state[1]
    if order not in ("<", ">", "=", "|") or state[2:] != (
      *(None,) * 3,
      *(-1, -1, 0),
    ):
      raise RefusedError(f"elements that are described by {state!r}")
    self.dtype = self.dtype.newbyteorder(order)


class _Array(_Inert):
  """An array that is being read."""

  __slots__ = ("array",)

  def __setstate__(self, state):
    _, shape, dtype, columns_first, content = state
    self.fill(content, dtype, shape, "F" if columns_first else "C")

  def fill(self, content, dtype, shape, order):
    """Takes the bytes of an array, if they are as many as its shape says."""
    if type(dtype) is not _Float or type(content) not in (bytes, bytearray):
      raise RefusedError(f"an array of {type(content).__name__}")
    if type(shape) is not tuple or not all(
      type(size) is int and size >= 0 for size in shape
    ):
      raise RefusedError(f"an array of shape {shape!r}")
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
      raise RefusedError(
        f"an array of shape {shape!r} out of {len(content)} bytes"
      )
    flat = np.frombuffer(content, dtype.dtype)
    self.array = flat.reshape(shape, order="F" if order == "F" else "C")
    return self


class _Reconstruct(_Inert):
  """What protocols up to 4 call to make an array, which is filled later."""

  __slots__ = ()

  def __call__(self, subtype, shape, dtype):
    return _Array()


class _Scalar(_Inert):
  """What NumPy calls to make a scalar."""

  __slots__ = ()

  def __call__(self, dtype, content):
    return _Array().fill(content, dtype, (), "C")


class _Frombuffer(_Inert):
  """What protocol 5 calls to make an array."""

  __slots__ = ()

  def __call__(self, content, dtype, shape, order):
    return _Array().fill(content, dtype, shape, order)


_ADMITTED = {
  ("collections", "OrderedDict"): _OrderedDict(),
  ("_codecs", "encode"): _Encode(),
  ("numpy", "ndarray"): _Ndarray(),
  ("numpy", "dtype"): _Dtype(),
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
  _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
  _ADMITTED[f"{_core}.multiarray", "scalar"] = _Scalar()
  _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _Frombuffer()


class _Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    try:
      return _ADMITTED[module, name]
    except KeyError:
      raise RefusedError(f"{module}.{name}") from None

  def persistent_load(self, pid):
    raise RefusedError(f"a reference to {pid!r}")


def load(file: BinaryIO):
  """Opens a pickle of floats in plain containers.

  Args:
    file: has `read` and `readline`.

  Returns:
    What was pickled, with every array as an object whose `array` it is.

  Raises:
    RefusedError: if the file asks for anything else.
    Exception: of any kind, if the pickle is damaged.
  """
  return _Unpickler(file).load()
