"""The weights of timm's `dm_nfnet_f0` to `dm_nfnet_f6`, and back.

timm (PyTorch Image Models) has DeepMind's networks with other names and axes:
kernels are OIHW, gains [out, 1, 1, 1], and squeeze-excite is a pair of 1x1
convolutions. Its other networks of the family compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.models.parameter_names import (
  HEAD_KEYS,
  LEFT_OVER,
  Key,
  ModuleNames,
)

_FIRST = "stem.conv1.weight"
_HEAD = dict(zip(("head.fc.weight", "head.fc.bias"), HEAD_KEYS))
# Where scripts put weights in a checkpoint: timm's, torchvision's and others'.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_RAW = ("state_dict", "model", "model_state_dict", "module", "net", "params")
_NAMES = {"w": "weight", "b": "bias", "gain": "gain", "bias": "bias"}
_COUNT = re.compile(r"(.*\.)?n(um)?_averaged")  # of PyTorch's AveragedModel
_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def from_timm(
  path: str,
  content: object,
  modules: Iterable[ModuleNames],
  averaged: bool,
) -> dict[Key, np.ndarray]:
  """Converts a state dict of timm's to DeepMind's layout.

  What matches no parameter keeps its name, in the module `LEFT_OVER`.

  Args:
    path: of the file, for messages.
    content: {name: array, or what has `numpy()`}, or a checkpoint around it.
    modules: of the network that the arrays are for.
    averaged: whether averages are taken where the checkpoint has them.

  Returns:
    {(module, name): read-only array of floats, of any shape}.

  Raises:
    UserError: if these are not the weights of a `dm_nfnet`, or of one with
      other blocks.
  """
  modules = list(modules)
  state = _state_dict(path, content, averaged)
  _refuse_others(path, state)
  _check_blocks(path, state, modules)
  arrays = {}
  for key, name, variable in _timm_names(modules):
    if name in state:
      array = _floats(path, name, state.pop(name))
      arrays[key] = _to_deepmind(key[1], array, len(variable.shape))
  for name, key in _HEAD.items():  # of a network without a head
    if name in state:
      arrays[key] = _to_deepmind(
        key[1], _floats(path, name, state.pop(name)), 2
      )
  return {**arrays, **{(LEFT_OVER, name): x for name, x in state.items()}}


def to_timm(modules: Iterable[ModuleNames]) -> dict[str, np.ndarray]:
  """Returns {timm's name: float32 array in timm's layout}."""
  arrays = {}
  for (_, name), timm, variable in _timm_names(modules):
    array = variable.numpy()
    if name == "w":
      if array.ndim == 2 and timm not in _HEAD:
        array = array[None, None]  # squeeze-excite is convolutions
      array = np.moveaxis(array, (-1, -2), (0, 1))
    elif name == "gain":
      array = array.reshape(-1, 1, 1, 1)
    arrays[timm] = array
  return arrays


def _timm_names(
  modules: Iterable[ModuleNames],
) -> Iterator[tuple[Key, str, tf.Variable]]:
  """Yields (DeepMind's key, timm's name, variable) of every parameter."""
  for module in modules:
    for name, variable in zip(module.names, module.variables):
      theirs = "skipinit_gain" if name == "skip_gain" else _NAMES[name]
      yield (module.module, name), f"{module.timm}.{theirs}", variable


def _to_deepmind(name: str, array: np.ndarray, rank: int) -> np.ndarray:
  """Returns a view of one of timm's arrays with DeepMind's axes."""
  if name == "gain" and array.shape[1:] == (1, 1, 1):
    return array[:, 0, 0, 0]
  if name != "w" or array.ndim < 2:
    return array
  if rank == 2 and array.shape[2:] == (1, 1):
    array = array[:, :, 0, 0]
  return np.moveaxis(array, (0, 1), (-1, -2))


def _floats(path: str, name: str, array: object) -> np.ndarray:
  """Returns an array of floats, or raises."""
  array = array.numpy() if hasattr(array, "numpy") else array
  kind = getattr(array, "dtype", type(array).__name__)
  if getattr(kind, "name", kind) not in _FLOATS:
    raise UserError(
      f"{name} of {path!r} is {kind}; expected floats that are"
      " not quantized, as timm publishes them."
    )
  return array


def _is_state_dict(content: object) -> bool:
  return isinstance(content, Mapping) and any(
    hasattr(value, "shape") for value in content.values()
  )


def _state_dict(path: str, content: object, averaged: bool) -> dict:
  """Returns {timm's name: array} out of what a training script wrote around it.

  Wrappers such as DataParallel put a prefix before every name.
  """
  wrappers = (*_AVERAGED, *_RAW) if averaged else _RAW
  if isinstance(content, Mapping):
    inner = (content.get(name) for name in wrappers)
    content = next(filter(_is_state_dict, inner), content)
  if not _is_state_dict(content):
    found = type(content).__name__
    if isinstance(content, Mapping):
      found = f"a dictionary of {_some(content) or 'nothing'}"
    raise UserError(
      f"{path!r} holds {found}; expected {{name: tensor}}, alone or under"
      f" one of {', '.join(map(repr, wrappers))}."
    )
  prefixes = {
    name[: -len(_FIRST)]
    for name in content
    if name == _FIRST or name.endswith(f".{_FIRST}")
  }
  if len(prefixes) > 1:
    raise UserError(
      f"{path!r} holds several networks, under {_some(sorted(prefixes))};"
      " expected the state dict of one."
    )
  prefix = next(iter(prefixes), "")
  return {
    name[len(prefix) :] if name.startswith(prefix) else name: value
    for name, value in content.items()
    if not _COUNT.fullmatch(name)
  }


def _some(names: Iterable) -> str:
  names = [repr(name) for name in names]
  return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _refuse_others(path: str, state: Mapping) -> None:
  """Raises a UserError if these are not weights of a `dm_nfnet`."""
  if _FIRST not in state:
    kind = f"another network, with {_some(state)}"
    if any(name.endswith("stem.conv.weight") for name in state):
      kind = "timm's nf_resnet or nf_regnet"
  elif any(name.endswith(".attn_last.conv.weight") for name in state):
    kind = "timm's eca_nfnet"
  elif not any(name.endswith(".skipinit_gain") for name in state):
    last = getattr(state.get("stages.0.0.conv3.weight"), "shape", (0, 0))
    narrow = last[0] == 4 * last[1]
    kind = f"timm's {'nfnet_l0' if narrow else 'nfnet_f, not dm_nfnet_f'}"
  else:
    return
  raise UserError(
    f"{path!r} holds the weights of {kind}; expected those of timm's"
    " dm_nfnet_f0 to dm_nfnet_f6: the others compute something else."
  )


def _blocks(names: Iterable[str]) -> tuple[int, ...]:
  """Returns the number of blocks of each stage."""
  blocks = {match.groups() for match in map(_BLOCK.match, names) if match}
  stages = sorted({int(stage) for stage, _ in blocks})
  return tuple(
    sum(int(stage) == number for stage, _ in blocks) for number in stages
  )


def _check_blocks(
  path: str, state: Mapping, modules: Iterable[ModuleNames]
) -> None:
  """Raises a UserError if the network has other blocks than the weights."""
  theirs = _blocks(state)
  ours = _blocks(f"{module.timm}." for module in modules)
  if theirs == ours:
    return
  raise UserError(
    f"{path!r} holds the weights of {_describe(theirs)}, and the network has"
    f" {ours}; choose the variant that the weights belong to."
  )


def _describe(blocks: tuple[int, ...]) -> str:
  number = blocks[0] if blocks else 0
  whole = blocks == (number, 2 * number, 6 * number, 3 * number)
  name = f"dm_nfnet_f{number - 1}" if whole and number else "a network"
  return f"{name}, which has {blocks} blocks"
