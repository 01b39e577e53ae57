"""DeepMind's parameter files: {module: {name: array}}, pickled.

The published `F0_haiku.npz` to `F6_haiku.npz` are, whatever their ending says,
pickles. A pickle may call any function when it is opened, so this reader admits
NumPy's arrays and plain containers and refuses everything else by name.
"""

import collections
import pickle

import numpy as np
import tensorflow as tf

from nfnets_tf.ops.errors import UserError

Parameters = dict[str, dict[str, np.ndarray]]


class _RefusedError(Exception):
  """Names what a file asks for and does not get."""


def _bytes_of_text(text: str, encoding: str) -> bytes:
  """What protocol 2 calls to make bytes, for the one encoding that it uses."""
  if encoding != "latin1":
    raise _RefusedError(f"bytes in the encoding {encoding!r}")
  return text.encode("latin1")


def _frombuffer(buffer, dtype, shape, order) -> np.ndarray:
  """What protocol 5 calls to make an array."""
  return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _array(subtype, shape, dtype) -> np.ndarray:
  """What protocols up to 4 call to make an array, which is filled later."""
  if subtype is not np.ndarray or shape != (0,):
    raise _RefusedError(f"{subtype!r} of shape {shape!r}")
  return np.empty(shape, dtype)


def _scalar(dtype, content: bytes = b"") -> np.generic:
  """What NumPy calls to make a scalar."""
  return np.frombuffer(content, dtype=dtype)[0]


_ADMITTED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("_codecs", "encode"): _bytes_of_text,
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
  _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _array
  _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
  _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _ArrayUnpickler(pickle.Unpickler):
  """Opens nothing but arrays in plain containers."""

  def find_class(self, module, name):
    try:
      return _ADMITTED[module, name]
    except KeyError:
      raise _RefusedError(f"{module}.{name}") from None

  def persistent_load(self, pid):
    raise _RefusedError(f"a reference to {pid!r}")


def read_parameters(path: str) -> Parameters:
  """Reads a file of DeepMind's; runs no code that it may hold.

  Args:
    path: local or gs://, such as "F0_haiku.npz".

  Returns:
    {module: {name: float array}}.

  Raises:
    UserError: if the file asks for anything but arrays in plain containers, is
      no whole pickle, or holds something else than parameters by module.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    try:
      content = _ArrayUnpickler(_Reader(file)).load()
    except _RefusedError as error:
      raise UserError(
        f"the parameter file {path!r} was not opened: it asks for {error}, and"
        " only NumPy arrays in dictionaries are admitted; a file of DeepMind's"
        " asks for nothing else, so find out where this one comes from."
      ) from error
    except Exception as error:
      # Whatever a damaged stream makes the reader stumble over.
      raise UserError(
        f"the parameter file {path!r} is no whole pickle ({error}); download it"
        " again."
      ) from error
  _check(path, content)
  return {module: dict(arrays) for module, arrays in content.items()}


def _check(path: str, content) -> None:
  def fits(arrays):
    return isinstance(arrays, dict) and all(
      isinstance(name, str)
      and isinstance(array, (np.ndarray, np.generic))
      and np.issubdtype(array.dtype, np.floating)
      for name, array in arrays.items()
    )

  if not isinstance(content, dict) or not all(
    isinstance(module, str) and fits(arrays)
    for module, arrays in content.items()
  ):
    raise UserError(
      f"the parameter file {path!r} holds something else than parameters by"
      " module; expected {module: {name: array of floats}}, as in DeepMind's"
      " F0_haiku.npz."
    )


def write_parameters(path: str, parameters: Parameters) -> None:
  """Writes parameters as DeepMind's files hold them, for any pickle reader.

  Args:
    path: of the file, such as "F0_haiku.npz"; must not exist.
    parameters: {module: {name: array}}.

  Raises:
    UserError: if the file exists.
  """
  if tf.io.gfile.exists(path):
    raise UserError(
      f"the file {path!r} exists already and is not overwritten; name another."
    )
  partial = f"{path}.partial"
  with tf.io.gfile.GFile(partial, "wb") as file:
    # Protocol 4 has frames for arrays above 4 GB, and old readers know it.
    file.write(pickle.dumps(parameters, protocol=4))
  tf.io.gfile.rename(partial, path)


class _Reader:
  """A gfile as `pickle` wants it: `readline` must give bytes to the end."""

  def __init__(self, file):
    self._file = file

  def read(self, size: int) -> bytes:
    return self._file.read(size)

  def readline(self) -> bytes:
    return self._file.readline()
