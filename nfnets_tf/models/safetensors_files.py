"""Reads and writes safetensors files.

Eight bytes with the length of a header, a header in JSON, and the numbers. The
library `safetensors` is not used: its reader for NumPy knows no bfloat16, and
it opens local files only.
"""

from __future__ import annotations

import json
import math

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import new_file, read_bytes

_DTYPES = {
  **{"F64": "<f8", "F32": "<f4", "F16": "<f2"},
  "BF16": tf.bfloat16.as_numpy_dtype,
  **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
  **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"},
}
_PREFIX = 8  # bytes


def read_safetensors(path: str) -> dict[str, np.ndarray]:
  """Reads a safetensors file.

  Args:
    path: local or gs://, such as "model.safetensors".

  Returns:
    {name: read-only array of any shape and type}.

  Raises:
    UserError: if the file is damaged.
  """
  content = read_bytes(path)
  try:
    start = _PREFIX + int.from_bytes(content[:_PREFIX], "little")
    header = json.loads(content[_PREFIX:start].decode())
    header.pop("__metadata__", None)
    numbers = memoryview(content)[start:]
    arrays = {name: _array(numbers, **entry) for name, entry in header.items()}
    if sum(array.nbytes for array in arrays.values()) != len(numbers):
      raise ValueError(f"its arrays are not {len(numbers):,} bytes")
  except Exception as error:  # a damaged header can raise anything
    raise UserError(
      f"{path!r} is not a complete safetensors file ({error}); download it"
      " again."
    ) from error
  return arrays


def _array(numbers, *, dtype: str, shape, data_offsets) -> np.ndarray:
  """Returns a view of `numbers`, exactly as many bytes as the shape needs."""
  begin, end = data_offsets
  kind = np.dtype(_DTYPES[dtype])
  size = math.prod(shape) * kind.itemsize
  if not 0 <= begin <= end <= len(numbers) or end - begin != size:
    raise ValueError(
      f"shape {shape} of {dtype} at bytes {begin} to {end} of {len(numbers)}"
    )
  return np.frombuffer(numbers[begin:end], kind).reshape(shape)


def write_safetensors(path: str, arrays: dict[str, np.ndarray]) -> None:
  """Writes float32 arrays, of any shape, as a safetensors file.

  Args:
    path: of the file, such as "model.safetensors"; must not exist.
    arrays: {name: array}.

  Raises:
    UserError: if the file exists.
  """
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name, array in arrays.items():
    begin, end = end, end + 4 * np.size(array)
    header[name] = {
      "dtype": "F32",
      "shape": list(np.shape(array)),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % _PREFIX)  # readers want aligned numbers
  with new_file(path) as file:
    file.write(len(text).to_bytes(_PREFIX, "little") + text)
    for array in arrays.values():
      file.write(np.ascontiguousarray(array, "<f4").tobytes())
