"""PyTorch's files: read as they are, refused in a sentence, never run."""

import argparse
import collections
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models.file_formats import file_format
from nfnets_tf.models.safetensors_files import (
  read_safetensors,
  write_safetensors,
)
from nfnets_tf.models.torch_files import read_torch
from tests.support.torch_pickle import (
  Call,
  Global,
  Reference,
  storage,
  tensor,
  write_archive,
  write_legacy,
)

NUMBERS = np.arange(12, dtype="<f4")
VIEWS = {  # (offset, shape, strides): the view, as NumPy makes it
  (0, (3, 4), (4, 1)): NUMBERS.reshape(3, 4),
  (0, (4, 3), (1, 4)): NUMBERS.reshape(3, 4).T,
  (5, (2,), (3,)): NUMBERS[[5, 8]],
  (11, (), ()): NUMBERS[11],
  (2, (4, 1), (0, 0)): np.full([4, 1], 2.0),
  (12, (0, 3), (3, 1)): np.zeros([0, 3]),
}
KINDS = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "LongStorage": "<i8",
  "ByteStorage": "u1",
}


def test_views_of_one_storage(tmp_path):
  path = tmp_path / "x.pth"
  content = [tensor(storage("0", 12), *view) for view in VIEWS]
  write_archive(path, content, {"0": NUMBERS.tobytes()})
  for got, view in zip(read_torch(str(path)), VIEWS.values()):
    np.testing.assert_array_equal(got.numpy(), view)
    assert got.shape == view.shape


@pytest.mark.parametrize("kind", KINDS)
def test_types_and_both_formats(kind, tmp_path):
  numbers = np.arange(1, 7).astype(KINDS[kind])
  content = {"w": tensor(storage("7", 6, kind), 0, (2, 3), (3, 1))}
  write_archive(tmp_path / "a", content, {"7": numbers.tobytes()})
  rest = {"view": None}
  content = {"w": tensor(storage("7", 6, kind, **rest), 0, (2, 3), (3, 1))}
  write_legacy(tmp_path / "b", content, {"7": (6, numbers.tobytes())})
  for name in "ab":
    got = read_torch(str(tmp_path / name))["w"].numpy()
    np.testing.assert_array_equal(got, numbers.reshape(2, 3))
    assert got.dtype == numbers.dtype


def test_numbers_of_another_byte_order(tmp_path):
  content = tensor(storage("0", 12), 0, (12,), (1,))
  write_archive(tmp_path / "x", content, {"0": NUMBERS.astype(">f4").tobytes()})
  with zipfile.ZipFile(tmp_path / "y", "w") as new:
    with zipfile.ZipFile(tmp_path / "x") as old:
      for name in old.namelist():
        order = name.endswith("byteorder")
        new.writestr(name, b"big" if order else old.read(name))
  got = read_torch(str(tmp_path / "y")).numpy()
  np.testing.assert_array_equal(got, NUMBERS)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_legacy_files_of_every_protocol(protocol, tmp_path):
  content = {"w": tensor(storage("7", 12, view=None), 0, (12,), (1,))}
  path = tmp_path / "x"
  storages = {"7": (12, NUMBERS.tobytes())}
  write_legacy(path, content, storages, protocol=protocol)
  assert file_format(str(path)) == "torch"
  np.testing.assert_array_equal(read_torch(str(path))["w"].numpy(), NUMBERS)


def test_what_a_training_script_saves_beside_the_weights(tmp_path):
  rest = {
    "scheduler": collections.defaultdict(list, {"a": [1]}),
    "seen": collections.Counter("ab"),
    "options": argparse.Namespace(lr=0.1),
    "epoch": np.int64(3),
    "random": np.arange(3, dtype=np.uint32),
    "top1": np.float64(0.5),
    "names": {"a", "b"},
    "device": Call(Global("torch", "device"), "cpu"),
    "dtype": Global("torch", "bfloat16"),
    "shape": Call(Global("torch", "Size"), [1, 2]),
  }
  w = tensor(storage("0", 12), 0, (12,), (1,))
  write_archive(tmp_path / "x", {**rest, "w": w}, {"0": NUMBERS.tobytes()})
  content = read_torch(str(tmp_path / "x"))
  assert content.keys() == {*rest, "w"}
  np.testing.assert_array_equal(content["w"].numpy(), NUMBERS)
  words = "elements of type 'O8'"
  assert words in refused(tmp_path, {"x": np.array([None], object)})


def refused(tmp_path, content, storages=None, **options):
  path = tmp_path / "x.pth"
  storages = {"0": bytes(48)} if storages is None else storages
  write_archive(path, content, storages, **options)

  def numpy(value):
    values = value.values() if isinstance(value, dict) else [value]
    return [x.numpy() for x in values]

  with pytest.raises(UserError) as error:
    numpy(read_torch(str(path)))
  return str(error.value)


@pytest.mark.parametrize(
  "view",
  [
    (0, (13,), (1,)),
    (1, (12,), (1,)),
    (0, (2,), (12,)),
    (-1, (2,), (1,)),
    (0, (2,), (-1,)),
    (0, (2, 2), (1,)),
    (0, (2.0,), (1,)),
    (0, (2**62, 2**62), (2**62, 1)),
  ],
  ids=str,
)
def test_views_beyond_the_storage_are_refused(view, tmp_path):
  assert "asks for a tensor" in refused(
    tmp_path, tensor(storage("0", 12), *view)
  )


def test_hostile_files_run_nothing_and_are_refused_by_name(tmp_path):
  mark = tmp_path / "was run"
  for function in (("os", "system"), ("posix", "system"), ("builtins", "eval")):
    bomb = Call(Global(*function), f"touch '{mark}'")
    for content in (bomb, {"w": bomb}, {bomb: 1}, {"args": bomb}):
      text = refused(tmp_path, content)
      assert "was not opened: it asks for " + ".".join(function) in text
  assert not mark.exists()
  for content, words in {
    Global(
      "torch.nn.modules.conv", "Conv2d"
    ): "asks for a whole model, torch.nn",
    Global("timm.models.nfnet", "NormFreeNet"): "asks for a whole model, timm",
    Reference("module", 1, 2, 3, 4): "asks for a reference",
    Reference("storage", "x", "0", "cpu", 12): "asks for a storage of 'x'",
    storage("0", 12, "QInt8Storage"): "asks for torch.QInt8Storage",
    Global("torch", "load"): "asks for torch.load",
  }.items():
    assert words in refused(tmp_path, {"w": content})


@pytest.mark.parametrize(
  "name",
  [
    ("torch", "FloatStorage"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("argparse", "Namespace"),
    ("torch", "device"),
  ],
)
def test_names_cannot_be_changed(name, tmp_path):
  """A state of two dictionaries sets attributes where nothing prevents it."""
  named = Global(*name)
  path = tmp_path / "x.pth"
  state = (None, {"__init__": "x", "dtype": "O", "_function": "x"})
  changed = Call(
    Global("torch._utils", "_rebuild_parameter"), named, state=state
  )
  write_archive(path, [changed, tensor(storage("0", 12), 0, (12,), (1,))], {})
  with pytest.raises(UserError, match="change of a|not a complete file"):
    read_torch(str(path))


def test_storages_without_their_bytes_are_refused(tmp_path):
  path = tmp_path / "x.pth"
  whole = {"w": tensor(storage("0", 12), 0, (12,), (1,))}
  write_archive(path, whole, {"0": bytes(44)})
  with pytest.raises(UserError, match="12 numbers of float32 out of 44 bytes"):
    read_torch(str(path))["w"].numpy()
  write_archive(path, whole, {})
  with pytest.raises(UserError, match="no item named 'x/data/0'"):
    read_torch(str(path))["w"].numpy()
  write_archive(path, whole, {"0": bytes(2**22)}, zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match="more bytes than the file has"):
    read_torch(str(path))


@pytest.mark.parametrize("end", [10, 30, 70, -1])
def test_cut_off_files_are_refused(end, tmp_path):
  content = {"w": tensor(storage("0", 12, view=None), 0, (12,), (1,))}
  write_legacy(tmp_path / "b", content, {"0": (12, NUMBERS.tobytes())})
  write_archive(tmp_path / "a", content, {"0": NUMBERS.tobytes()})
  write_safetensors(str(tmp_path / "c"), {"w": NUMBERS})
  for name, read in {
    "a": read_torch,
    "b": read_torch,
    "c": read_safetensors,
  }.items():
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match="not a complete .*download it again"):
      read(str(path))


def test_legacy_lengths_are_not_believed(tmp_path):
  content = {"w": tensor(storage("0", 12, view=None), 0, (12,), (1,))}
  for length in (2**62, 13, 11):
    write_legacy(tmp_path / "b", content, {"0": (length, NUMBERS.tobytes())})
    with pytest.raises(UserError, match="not a complete file"):
      read_torch(str(tmp_path / "b"))
  write_legacy(
    tmp_path / "b", content, {"0": (12, NUMBERS.tobytes())}, little_endian=False
  )
  with pytest.raises(UserError, match="another byte order"):
    read_torch(str(tmp_path / "b"))


def write_header(path, header, numbers):
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def test_safetensors_are_read_and_written(tmp_path):
  path = tmp_path / "x.safetensors"
  arrays = {"w": NUMBERS.reshape(3, 4).T, "gain": np.float32(3.0)}
  write_safetensors(str(path), arrays)
  assert os.listdir(tmp_path) == ["x.safetensors"]
  got = read_safetensors(str(path))
  assert list(got) == ["w", "gain"]
  for name, array in arrays.items():
    np.testing.assert_array_equal(got[name], array)
    assert got[name].shape == array.shape
  with pytest.raises(UserError, match="exists and is not overwritten"):
    write_safetensors(str(path), arrays)


@pytest.mark.parametrize(
  "change",
  [
    {"shape": [13]},
    {"shape": [-12]},
    {"shape": [2**62, 4]},
    {"dtype": "F64"},
    {"dtype": "F8_E4M3"},
    {"data_offsets": [4, 52]},
    {"data_offsets": [-48, 0]},
    {"data_offsets": [0, 44]},
    {"more": 1},
  ],
  ids=str,
)
def test_malformed_safetensors_are_refused(change, tmp_path):
  entry = {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}
  path = tmp_path / "x.safetensors"
  write_header(path, {"w": entry}, bytes(48))
  assert read_safetensors(str(path))["w"].shape == (12,)
  write_header(path, {"w": {**entry, **change}}, bytes(48))
  with pytest.raises(UserError, match="not a complete safetensors file"):
    read_safetensors(str(path))
