"""Safe readers of parameter files: no code from a file is run.

DeepMind's published `F0_haiku.npz` to `F6_haiku.npz` are pickles despite their
suffix: {module: {name: array}}. A pickle may call any function when it
is opened, set attributes of what it names and, with NumPy's own types, make an
array of pointers out of bytes. So only an allow-list of names is resolved, each
to a stand-in that holds no state and makes only floats; everything else is
refused by name. Of Keras files the arrays are read, never the configuration,
which may name any class: Keras 2.15 imports it even with `safe_mode=True`.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable

import h5py
import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError

Parameters = dict[str, dict[str, np.ndarray]]

_KERAS_WEIGHTS = "model.weights.h5"  # inside a .keras archive
_NOT_WEIGHTS = ("metrics/", "optimizer/", "optimizer_weights/")


def read_parameters(path: str) -> Parameters:
  """Reads a parameter file in DeepMind's layout.

  Args:
    path: local or gs://, such as "F0_haiku.npz".

  Returns:
    {module: {name: float array of any shape}}.

  Raises:
    UserError: if the file asks for anything but arrays of floats in plain
      containers, is damaged, or does not hold parameters by module.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    try:
      content = _Unpickler(_Reader(file)).load()
    except _RefusedError as error:
      raise UserError(
        f"the parameter file {path!r} was not opened: it asks for {error};"
        " expected NumPy arrays of floats in dictionaries, as in DeepMind's"
        " files; check where this one comes from."
      ) from error
    except Exception as error:  # a damaged stream can raise anything
      raise UserError(
        f"the parameter file {path!r} is not a complete pickle ({error});"
        " download it again."
      ) from error
  if not _are_parameters(content):
    raise UserError(
      f"the parameter file {path!r} does not hold parameters by module;"
      " expected {module: {name: array of floats}}, as in DeepMind's"
      " F0_haiku.npz."
    )
  return {
    module: {name: leaf.array for name, leaf in leaves.items()}
    for module, leaves in content.items()
  }


def write_parameters(path: str, parameters: Parameters) -> None:
  """Writes parameters in DeepMind's layout, for any reader of pickles.

  Args:
    path: of the file, such as "F0_haiku.npz"; must not exist.
    parameters: {module: {name: array of any shape}}.

  Raises:
    UserError: if the file exists.
  """
  if tf.io.gfile.exists(path):
    raise UserError(
      f"the file {path!r} exists and is not overwritten; choose another name."
    )
  partial = f"{path}.partial"
  with tf.io.gfile.GFile(partial, "wb") as file:
    # Protocol 4 has frames for arrays above 4 GB, and old readers know it.
    file.write(pickle.dumps(parameters, protocol=4))
  tf.io.gfile.rename(partial, path)


def read_keras_arrays(path: str) -> dict[str, np.ndarray]:
  """Reads the weights of a Keras file, without metrics and optimizer state.

  Args:
    path: ends in .keras, .h5 or .hdf5; local or gs://.

  Returns:
    {path inside the file: array of any shape}.

  Raises:
    UserError: if the file is damaged or not a Keras file.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    content = io.BytesIO(file.read())
  arrays = {}

  def keep(name, item):
    if isinstance(item, h5py.Dataset) and not name.startswith(_NOT_WEIGHTS):
      arrays[name] = item[()]

  try:
    if path.endswith(".keras"):
      with zipfile.ZipFile(content) as archive:
        content = io.BytesIO(archive.read(_KERAS_WEIGHTS))
    with h5py.File(content, "r") as file:
      file.visititems(keep)
  except (zipfile.BadZipFile, KeyError, OSError) as error:
    raise UserError(
      f"the Keras file {path!r} cannot be read ({error}); save the model again,"
      " or choose another file."
    ) from error
  return arrays


class _RefusedError(Exception):
  """Names the object that a file asks for and is refused."""


class _StandIn:
  """Stands for a function that a pickle names; cannot be changed by it."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable):
    self._function = function

  def __call__(self, *arguments):
    return self._function(*arguments)

  def __setstate__(self, state):
    raise _RefusedError("a change of a function")


class _Dtype:
  """The type of an array's elements: floats; only the byte order is set."""

  __slots__ = ("dtype",)

  def __init__(self, name, align=False, copy=True):
    if name not in ("f2", "f4", "f8"):
      raise _RefusedError(f"elements of type {name!r} instead of floats")
    self.dtype = np.dtype(name)

  def __setstate__(self, state):
    _, order, *rest = state
    if order not in ("<", ">", "=", "|") or rest != [*(None,) * 3, -1, -1, 0]:
      raise _RefusedError(f"elements described by {state!r}")
    self.dtype = self.dtype.newbyteorder(order)


class _Array:
  """An array whose bytes come with its state."""

  __slots__ = ("array",)

  def __setstate__(self, state):
    _, shape, dtype, fortran, content = state
    self.array = _array(content, dtype, shape, "F" if fortran else "C").array


def _array(content, dtype, shape, order="C") -> _Array:
  """Returns an array of exactly the bytes that its shape needs."""
  if type(dtype) is not _Dtype or type(content) not in (bytes, bytearray):
    raise _RefusedError(f"an array of {type(content).__name__}")
  if type(shape) is not tuple or not all(
    type(size) is int and size >= 0 for size in shape
  ):
    raise _RefusedError(f"an array of shape {shape!r}")
  if math.prod(shape) * dtype.dtype.itemsize != len(content):
    raise _RefusedError(
      f"an array of shape {shape!r} out of {len(content)} bytes"
    )
  leaf = _Array()
  flat = np.frombuffer(content, dtype.dtype)
  leaf.array = flat.reshape(shape, order="F" if order == "F" else "C")
  return leaf


def _encode(text, encoding) -> bytes:
  """Returns bytes, as pickles of protocol 2 write them."""
  if type(text) is not str or encoding != "latin1":
    raise _RefusedError(f"bytes in the encoding {encoding!r}")
  return text.encode("latin1")


def _refuse_ndarray(*arguments):
  raise _RefusedError("a call of numpy.ndarray")  # named, but never called


_ALLOWED = {
  ("collections", "OrderedDict"): _StandIn(lambda: {}),
  ("_codecs", "encode"): _StandIn(_encode),
  ("numpy", "ndarray"): _StandIn(_refuse_ndarray),
  ("numpy", "dtype"): _StandIn(_Dtype),
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
  _ALLOWED |= {
    # Protocols up to 4 make an empty array first and then set its state.
    (f"{_core}.multiarray", "_reconstruct"): _StandIn(lambda *_: _Array()),
    (f"{_core}.multiarray", "scalar"): _StandIn(
      lambda dtype, content: _array(content, dtype, ())
    ),
    (f"{_core}.numeric", "_frombuffer"): _StandIn(_array),
  }


class _Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise _RefusedError(f"{module}.{name}") from None

  def persistent_load(self, pid):
    raise _RefusedError(f"a reference to {pid!r}")


class _Reader:
  """A gfile as `pickle` needs it, which never reads beyond the file's end."""

  def __init__(self, file):
    self._file = file
    self._size = file.size()

  def read(self, size: int) -> bytes:
    # A forged length would otherwise allocate as much before it fails.
    return self._file.read(min(size, self._size - self._file.tell()))

  def readline(self) -> bytes:
    return self._file.readline()


def _are_parameters(content) -> bool:
  return isinstance(content, dict) and all(
    isinstance(module, str)
    and isinstance(leaves, dict)
    and all(
      isinstance(name, str) and type(leaf) is _Array and hasattr(leaf, "array")
      for name, leaf in leaves.items()
    )
    for module, leaves in content.items()
  )
