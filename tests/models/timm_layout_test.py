"""timm's weights are read and written; other files say what they are.

The files in testdata/timm were written by PyTorch and safetensors themselves.
"""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.safetensors_files import (
  read_safetensors,
  write_safetensors,
)
from nfnets_tf.models.weights import (
  get_parameters,
  load_weights,
  named_variables,
  parameter_table,
  save_deepmind,
  save_timm,
)
from tests.support.torch_pickle import storage, tensor, write_archive


@pytest.fixture(scope="module")
def network():
  """An NFNet femto of three classes; its weights may be changed."""
  return NFNet("femto", 3)


@pytest.fixture(scope="module")
def expected(network, golden_parameters):
  """The parameters of the files in testdata/timm, before they were rounded."""
  table = parameter_table(network)
  return golden_parameters({key: tuple(v.shape) for key, v in table.items()})


@pytest.fixture(scope="module")
def state(network, expected, tmp_path_factory):
  """{timm's name: array} of the network of `expected`."""
  path = str(tmp_path_factory.mktemp("timm") / "x.safetensors")
  for key, variable in parameter_table(network).items():
    variable.assign(expected[key[0]][key[1]])
  save_timm(network, path)
  return read_safetensors(path)


BFLOAT16 = tf.bfloat16.as_numpy_dtype


@pytest.mark.parametrize(
  "name, dtype, factor, averaged",
  [
    ("femto.safetensors", BFLOAT16, 1, True),
    ("legacy.pth", np.float16, 1, True),
    ("checkpoint.pth.tar", np.float16, 2, True),
    ("checkpoint.pth.tar", np.float16, 1, False),
  ],
)
def test_files_of_pytorch(
  name, dtype, factor, averaged, network, expected, testdata
):
  """Of half precision, views of one storage, averages, a training's options."""
  path = str(testdata / "timm" / name)
  load_weights(network, path, averaged=averaged)
  got = get_parameters(network)
  for module, arrays in expected.items():
    for name, array in arrays.items():
      rounded = np.asarray(array).astype(dtype).astype(np.float32)
      np.testing.assert_array_equal(got[module][name], factor * rounded)


def test_names_and_axes_are_timms(state, expected):
  block = "NFNet/~/nf_block_1"
  for name, array in {
    "stem.conv1.weight": expected["NFNet/~/stem_conv0"]["w"].transpose(
      3, 2, 0, 1
    ),
    "stages.1.0.conv2b.gain": expected[f"{block}/~/conv1b"]["gain"][
      :, None, None, None
    ],
    "stages.1.0.attn_last.fc1.weight": expected[
      f"{block}/~/squeeze_excite/~/linear"
    ]["w"].T[:, :, None, None],
    "stages.1.0.skipinit_gain": expected[block]["skip_gain"],
    "head.fc.weight": expected["NFNet/~/linear"]["w"].T,
  }.items():
    np.testing.assert_array_equal(state[name], array)
    assert state[name].shape == np.shape(array)


def write_state(path, state, wrap=lambda content: content):
  """Writes a state dict as torch.save does, with a storage for each tensor."""
  content, storages = {}, {}
  for key, (name, array) in enumerate(state.items()):
    array = np.ascontiguousarray(array, "<f4").reshape(np.shape(array))
    strides = tuple(step // 4 for step in array.strides)
    values = storage(str(key), array.size)
    content[name] = tensor(values, 0, array.shape, strides)
    storages[str(key)] = array.tobytes()
  write_archive(path, wrap(content), storages)
  return str(path)


@pytest.mark.parametrize(
  "wrap",
  [
    lambda content: {"state_dict": content, "epoch": 3},
    lambda content: {"model": content, "optimizer": {"state": {}}},
    lambda content: {"state_dict_ema": content, "state_dict": None},
    lambda content: {f"module.{n}": x for n, x in content.items()},
    lambda content: {
      "state_dict": {f"model._orig_mod.{n}": x for n, x in content.items()}
    },
    lambda content: {
      "model_ema": {
        "n_averaged": content["stem.conv1.bias"],
        **{f"module.{n}": x for n, x in content.items()},
      }
    },
  ],
  ids=range(6),
)
def test_wrappers_of_training_scripts(wrap, network, state, expected, tmp_path):
  network.set_weights([np.zeros(v.shape) for v in network.variables])
  load_weights(network, write_state(tmp_path / "x.bin", state, wrap))
  for key, variable in parameter_table(network).items():
    np.testing.assert_array_equal(variable, expected[key[0]][key[1]])


def refused(network, path):
  before = network.get_weights()
  with pytest.raises(UserError) as error:
    load_weights(network, str(path))
  for old, new in zip(before, network.get_weights()):
    np.testing.assert_array_equal(old, new)
  return str(error.value)


def without(state, part):
  return {name: x for name, x in state.items() if part not in name}


@pytest.mark.parametrize(
  "words, change",
  [
    ("nfnet_f, not dm_nfnet_f", lambda s: without(s, "skipinit_gain")),
    (
      "timm's nfnet_l0",
      lambda s: {
        **without(s, "skipinit_gain"),
        "stages.0.0.conv3.weight": np.zeros([16, 4, 1, 1]),
      },
    ),
    (
      "eca_nfnet",
      lambda s: {**s, "stages.0.0.attn_last.conv.weight": s["head.fc.bias"]},
    ),
    (
      "timm's nf_resnet or nf_regnet",
      lambda s: {**without(s, "stem."), "stem.conv.weight": s["head.fc.bias"]},
    ),
    (
      "another network, with 'layer1.0.conv1.weight'",
      lambda s: {"layer1.0.conv1.weight": s["head.fc.weight"]},
    ),
    (
      "a network, which has (1, 1, 1) blocks, and the network has (1",
      lambda s: without(s, "stages.3."),
    ),
    (
      "1 missing (NFNet/~/linear:b)",
      lambda s: without(s, "head.fc.bias"),
    ),
    (
      "1 left over (left over:head.extra)",
      lambda s: {**s, "head.extra": s["head.fc.bias"]},
    ),
    (
      "only the classifier differs: use keep_head=False",
      lambda s: {
        **s,
        "head.fc.weight": np.zeros([5, 64]),
        "head.fc.bias": np.zeros(5),
      },
    ),
    (
      "several networks",
      lambda s: {f"{who}.{n}": x for who in "ab" for n, x in s.items()},
    ),
  ],
  ids=range(10),
)
def test_other_networks_are_refused_by_name(
  words, change, network, state, tmp_path
):
  for path, write in {
    tmp_path / "x.safetensors": write_safetensors,
    tmp_path / "x.pth": write_state,
  }.items():
    write(str(path), change(state))
    assert words in refused(network, path)


def test_weights_of_another_depth_are_named(network, state, tmp_path):
  path = str(tmp_path / "x.safetensors")
  block = {n: x for n, x in state.items() if n.startswith("stages.0.0.")}
  for stage, depth in enumerate((2, 4, 12, 6)):
    for number in range(depth):
      name = f"stages.{stage}.{number}"
      state = {
        **state,
        **{n.replace("stages.0.0", name): x for n, x in block.items()},
      }
  write_safetensors(path, state)
  with pytest.raises(
    UserError, match="of dm_nfnet_f1, which has .2, 4, 12, 6."
  ):
    load_weights(network, path)


def test_a_head_of_other_classes_and_none(network, state, tmp_path):
  path = str(tmp_path / "x.safetensors")
  write_safetensors(path, state)
  body = NFNet("femto", include_top=False)
  assert "2 left over (NFNet/~/linear:b" in refused(body, path)
  load_weights(body, path, keep_head=False)
  load_weights(network, path)
  for got, want in zip(body.variables, network.variables):
    np.testing.assert_array_equal(got, want)
  write_safetensors(f"{path}2", without(state, "head.fc"))
  load_weights(network, f"{path}2", keep_head=False)


def test_integers_are_refused(network, state, tmp_path):
  path = tmp_path / "x.pth"
  write_archive(
    path,
    {
      **{
        n: tensor(storage("0", 1), 0, x.shape, (0,) * x.ndim)
        for n, x in state.items()
      },
      "stem.conv1.bias": tensor(storage("1", 8, "CharStorage"), 0, (8,), (1,)),
    },
    {"0": bytes(4), "1": bytes(8)},
  )
  assert "x.pth' is int8; expected floats" in refused(network, path)


@pytest.mark.parametrize(
  "content, words",
  [
    ([1, 2], "holds list; expected {name: tensor}"),
    ({"epoch": 3, "lr": 0.1}, "a dictionary of 'epoch', 'lr'"),
    ({}, "a dictionary of nothing"),
  ],
  ids=str,
)
def test_content_without_weights_is_named(content, words, network, tmp_path):
  write_archive(tmp_path / "x.pth", content, {})
  assert words in refused(network, tmp_path / "x.pth")


def archive(*names):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as new:
    for name in names:
      new.writestr(name, "{}")
  return file.getvalue()


OTHERS = {
  b"version https://git-lfs.github.com/spec/v1\noid": "a pointer of Git LFS",
  b"\n<!DOCTYPE html><html lang=en>": "a web page",
  b"<?xml version='1.0'?><Error><Code>NoSuchKey": "an answer in XML",
  b'{"architecture": "dm_nfnet_f0"}': "a JSON file",
  b"": "empty",
  archive("x/data.pkl")[:-30]: "a zip archive that is cut off",
  archive("config.json"): "a zip archive without weights",
  archive("w.npy"): "an archive of NumPy arrays",
  b"\x08\x07\x12\x07pytorch\x1a\x05": "an ONNX model",
  b"\x1f\x8b\x08\x00": "compressed by gzip",
  b"x.pth".ljust(257, b"\0") + b"ustar": "a tar archive",
  b"\x1c\x00\x00\x00TFL3": "a TFLite model",
  b"\x93NUMPY\x01\x00": "a single NumPy array",
}


@pytest.mark.parametrize("content", OTHERS, ids=range(len(OTHERS)))
def test_other_files_say_what_they_are(content, network, tmp_path):
  for name in ("model.safetensors", "dm_nfnet_f0-604f9c3a.pth", "F0_haiku.npz"):
    (tmp_path / name).write_bytes(content)
    text = refused(network, tmp_path / name)
    assert f"{name}' holds no weights: it is {OTHERS[content]}" in text


def test_a_models_archive_is_a_whole_model(network, tmp_path):
  (tmp_path / "x.pt").write_bytes(archive("x/data.pkl", "x/constants.pkl"))
  assert "a whole model, in TorchScript" in refused(network, tmp_path / "x.pt")


def test_the_content_decides_not_the_suffix(network, state, tmp_path):
  (tmp_path / "f").mkdir()
  write_safetensors(str(tmp_path / "f" / "model.safetensors"), state)
  network.save_weights(str(tmp_path / "x.weights.h5"))
  (tmp_path / "x.weights.h5").rename(tmp_path / "keras.pth")
  (tmp_path / "timm.keras.npz").write_bytes(
    (tmp_path / "f" / "model.safetensors").read_bytes()
  )
  for name in ("f", "keras.pth", "timm.keras.npz"):
    load_weights(network, str(tmp_path / name))


@pytest.mark.parametrize(
  "name, words",
  [
    ("model.safetensors", "not a complete safetensors file"),
    ("F0.pth", "not a complete file of torch.save"),
    ("pytorch_model.bin", "not a complete file of torch.save"),
    ("F0_haiku.npz", "not a complete pickle"),
  ],
)
def test_a_file_cut_off_at_once_is_what_its_name_says(
  name, words, network, tmp_path
):
  for content in (b"\x05\0\0\0\0", b"\x10" + bytes(7), b"\xff" * 99):
    (tmp_path / name).write_bytes(content)
    assert words in refused(network, tmp_path / name)
  (tmp_path / name).write_bytes(pickle.dumps(os.system))
  assert "asks for posix.system" in refused(network, tmp_path / name)


def test_paths_of_pathlib(network, tmp_path):
  save_timm(network, tmp_path / "x.safetensors")
  load_weights(network, tmp_path / "x.safetensors")
  save_deepmind(network, tmp_path / "x.npz")
  NFNet("femto", 4, weights=tmp_path / "x.npz")
  for value in (True, 5, b"x.npz", ""):
    with pytest.raises(UserError, match="NFNet.weights = .* expected a path"):
      NFNet("femto", 4, weights=value)


def test_writing_wants_the_suffix_and_overwrites_nothing(network, tmp_path):
  with pytest.raises(UserError, match="expected the suffix .safetensors"):
    save_timm(network, str(tmp_path / "x.pth"))
  save_timm(network, str(tmp_path / "x.safetensors"))
  with pytest.raises(UserError, match="exists and is not overwritten"):
    save_timm(network, str(tmp_path / "x.safetensors"))


def test_any_file_of_a_checkpoint_names_it(network, expected, tmp_path):
  for key, variable in parameter_table(network).items():
    variable.assign(expected[key[0]][key[1]])
  checkpoint = tf.train.Checkpoint(parameters=named_variables(network))
  prefix = checkpoint.write(str(tmp_path / "ckpt-3"))
  for suffix in ("", ".index", ".data-00000-of-00001"):
    load_weights(network, prefix + suffix)
