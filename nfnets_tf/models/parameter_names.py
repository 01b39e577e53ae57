"""Names of an NFNet's parameters: DeepMind's, Keras', timm's, checkpoints'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError

Parameters = dict[str, dict[str, np.ndarray]]
Key = tuple[str, str]  # DeepMind's module and the parameter's name in it

ROOT = "NFNet/~"
HEAD = f"{ROOT}/linear"
HEAD_KEYS = ((HEAD, "w"), (HEAD, "b"))
LEFT_OVER = "left over"  # module of arrays that match no parameter
_SEPARATOR = "|"  # "/" would be escaped in a checkpoint's keys


class ModuleNames(NamedTuple):
  """The names of one module in each layout, and its variables.

  Attributes:
    module: DeepMind's name.
    keras_folder: the folder in a .keras file.
    timm: timm's name.
    names: DeepMind's names of the parameters.
    variables: the parameters, of any shape, in the same order.
  """

  module: str
  keras_folder: str
  timm: str
  names: tuple[str, ...]
  variables: list[tf.Variable]


def join_name(module: str, parameter: str) -> str:
  """Returns the name of a parameter of one of DeepMind's modules."""
  return f"{module.replace('/', _SEPARATOR)}:{parameter}"


def split_name(name: str) -> Key:
  """Returns the (module, parameter) that `join_name` joined."""
  module, _, parameter = name.rpartition(":")
  return module.replace(_SEPARATOR, "/"), parameter


def by_module(arrays: Mapping[Key, np.ndarray]) -> Parameters:
  """Returns {module: {name: array}} of {(module, name): array}."""
  parameters: Parameters = {}
  for (module, name), array in arrays.items():
    parameters.setdefault(module, {})[name] = array
  return parameters


def check_fit(table: Mapping, arrays: Mapping) -> None:
  """Checks that `arrays` has exactly the keys and shapes of `table`.

  Raises:
    UserError: if not; it lists what is missing, left over or misshapen.
  """
  misfits = [
    key
    for key, variable in table.items()
    if key in arrays and np.shape(arrays[key]) != tuple(variable.shape)
  ]
  mismatches = {
    "missing": [":".join(key) for key in table.keys() - arrays.keys()],
    "left over": [":".join(key) for key in arrays.keys() - table.keys()],
    "of another shape": [
      f"{':'.join(key)} is {np.shape(arrays[key])}, not"
      f" {tuple(table[key].shape)}"
      for key in misfits
    ],
  }
  lists = [
    f"{len(names)} {kind} ({', '.join(sorted(names))})"
    for kind, names in mismatches.items()
    if names
  ]
  if not lists:
    return
  affected = {*misfits, *(table.keys() ^ arrays.keys())}
  hint = "; choose the variant that the parameters belong to."
  if {module for module, _ in affected} == {HEAD}:
    hint = "; only the classifier differs: use keep_head=False."
  raise UserError(
    f"the parameters do not fit the network: {'; '.join(lists)}{hint}"
  )
