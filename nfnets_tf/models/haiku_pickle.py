"""DeepMind's parameter files: {module: {name: array}}, pickled.

The published `F0_haiku.npz` to `F6_haiku.npz` are, whatever their ending says,
pickles; `array_pickle` opens them and lets them do nothing.
"""

import pickle

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.models import array_pickle

Parameters = dict[str, dict[str, np.ndarray]]


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
      content = array_pickle.load(_Reader(file))
    except array_pickle.RefusedError as error:
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
  return {
    module: {name: array.array for name, array in arrays.items()}
    for module, arrays in content.items()
  }


def _check(path: str, content) -> None:
  def fits(arrays):
    return isinstance(arrays, dict) and all(
      isinstance(name, str) and hasattr(array, "array")
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
  """A gfile as `pickle` wants it; it asks for no more than the file holds."""

  def __init__(self, file):
    self._file = file
    self._size = file.size()

  def read(self, size: int) -> bytes:
    return self._file.read(min(size, self._size - self._file.tell()))

  def readline(self) -> bytes:
    return self._file.readline()
