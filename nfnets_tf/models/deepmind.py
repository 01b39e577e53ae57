"""The one table between our variables and DeepMind's parameter tree.

DeepMind's files hold {module: {name: array}}, as Haiku names them. Kernels have
the same layout (HWIO, IO) in both.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.models.layers import ClassifierHead, WSConv2D
from nfnets_tf.models.nfnet import NFBlock

_ROOT = "NFNet/~"
_HEAD = f"{_ROOT}/linear"
HEAD_KEYS = ((_HEAD, "w"), (_HEAD, "b"))
CONVOLUTIONS = ("conv0", "conv1", "conv1b", "conv2", "conv_shortcut")


def parameter_table(
  network: keras.Model,
) -> dict[tuple[str, str], tf.Variable]:
  """Returns {(module, name): variable} for every variable of an `NFNet`."""
  table = {}
  for layer in network.layers:
    module = f"{_ROOT}/{layer.name}"
    if isinstance(layer, WSConv2D):
      table.update(_convolution(module, layer))
    elif isinstance(layer, NFBlock):
      table.update(_block(module, layer))
    elif isinstance(layer, ClassifierHead):
      table.update(_linear(_HEAD, layer))
  return table


def _block(module: str, block: NFBlock) -> dict:
  table = {(module, "skip_gain"): block.skip_gain}
  for name in CONVOLUTIONS:
    if (layer := getattr(block, name)) is not None:
      table.update(_convolution(f"{module}/~/{name}", layer))
  excite = f"{module}/~/squeeze_excite/~"
  table.update(_linear(f"{excite}/linear", block.squeeze_excite.reduce))
  table.update(_linear(f"{excite}/linear_1", block.squeeze_excite.expand))
  return table


def _convolution(module: str, layer: WSConv2D) -> dict:
  return {
    (module, "w"): layer.kernel,
    (module, "gain"): layer.gain,
    (module, "bias"): layer.bias,
  }


def _linear(module: str, layer: keras.layers.Dense) -> dict:
  return {(module, "w"): layer.kernel, (module, "b"): layer.bias}


def parameters_of(network: keras.Model) -> dict[str, dict[str, np.ndarray]]:
  """Returns an `NFNet`'s values as {module: {name: array}}, DeepMind's way."""
  parameters = {}
  for (module, name), variable in parameter_table(network).items():
    parameters.setdefault(module, {})[name] = variable.numpy()
  return parameters


def assign_parameters(
  network: keras.Model,
  parameters: Mapping[str, Mapping[str, np.ndarray]],
  *,
  keep_head: bool = True,
) -> None:
  """Gives every variable of `network` its array; none may be left over.

  Args:
    network: an `NFNet`.
    parameters: {module: {name: array}} as DeepMind's files hold them.
    keep_head: whether the classifier is among them; if not, the network's own
      stays as it is and theirs is not looked at.

  Raises:
    UserError: if arrays are missing, left over or of another shape; it lists
      them, and nothing has been assigned.
  """

  def wanted(key):
    return keep_head or key[0] != _HEAD

  table = {
    key: variable
    for key, variable in parameter_table(network).items()
    if wanted(key)
  }
  given = {
    (module, name): array
    for module, arrays in parameters.items()
    for name, array in arrays.items()
    if wanted((module, name))
  }
  _check_fit(table, given)
  for key, variable in table.items():
    variable.assign(given[key])


def _check_fit(table: Mapping, given: Mapping) -> None:
  """Raises a UserError unless `given` has exactly the shapes of `table`."""
  faults = {
    "missing": [":".join(key) for key in table.keys() - given.keys()],
    "left over": [":".join(key) for key in given.keys() - table.keys()],
    "of another shape": [
      f"{':'.join(key)} is {np.shape(given[key])}, not {tuple(v.shape)}"
      for key, v in table.items()
      if key in given and np.shape(given[key]) != tuple(v.shape)
    ],
  }
  lists = [
    f"{len(names)} {fault} ({', '.join(sorted(names))})"
    for fault, names in faults.items()
    if names
  ]
  if not lists:
    return
  affected = table.keys() ^ given.keys()
  affected |= {
    key
    for key in table.keys() & given.keys()
    if np.shape(given[key]) != tuple(table[key].shape)
  }
  hint = "; choose the variant that the parameters belong to."
  if {module for module, _ in affected} == {_HEAD}:
    hint = "; only the classifier differs: give keep_head=False."
  raise UserError(
    f"the parameters do not fit the network: {'; '.join(lists)}{hint}"
  )
