"""Writes files as torch.save does, without PyTorch, and malformed ones too."""

from __future__ import annotations

import io
import pickle
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C


class Global:
  """Pickles to the name of a function or class, which need not exist."""

  def __init__(self, module, name):
    self.text = f"c{module}\n{name}\n".encode()

  def __call__(self):
    raise AssertionError


class Call:
  """Pickles to a call of a function, and to a state set on its result."""

  def __init__(self, function, *arguments, state=None):
    self._reduced = function, arguments, state

  def __reduce__(self):
    return self._reduced


class Reference:
  """Pickles to a reference to something beside the pickle."""

  def __init__(self, *pid):
    self.pid = pid


class _Pickler(pickle._Pickler):
  def save(self, value, save_persistent_id=True):
    if isinstance(value, Global):
      return self.write(value.text)
    return super().save(value, save_persistent_id)

  def persistent_id(self, value):
    return value.pid if isinstance(value, Reference) else None


def storage(key, size, kind="FloatStorage", **rest):
  """Returns what pickles to a storage of `size` numbers."""
  kind = Global("torch", kind)
  return Reference("storage", kind, key, "cpu", size, *rest.values())


def tensor(values, offset, shape, strides):
  """Returns what pickles to a tensor of the storage `values`."""
  rebuild = Global("torch._utils", "_rebuild_tensor_v2")
  return Call(rebuild, values, offset, shape, strides, False, {})


def dumps(content, protocol=2) -> bytes:
  """Returns a pickle of protocol 2, as torch.save writes them."""
  file = io.BytesIO()
  _Pickler(file, protocol).dump(content)
  return file.getvalue()


def write_archive(path, content, storages, compression=zipfile.ZIP_STORED):
  """Writes a file of PyTorch 1.6 and later; `storages` is {key: bytes}."""
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("x/data.pkl", dumps(content))
    archive.writestr("x/byteorder", "little")
    for key, numbers in storages.items():
      archive.writestr(f"x/data/{key}", numbers)


def write_legacy(path, content, storages, little_endian=True, protocol=2):
  """Writes a file of before; `storages` is {key: (length, bytes)}."""
  parts = [MAGIC, 1001, {"little_endian": little_endian}, content]
  parts.append(list(storages))
  file = b"".join(dumps(part, protocol) for part in parts)
  for length, numbers in storages.values():
    file += length.to_bytes(8, "little") + numbers
  path.write_bytes(file)
