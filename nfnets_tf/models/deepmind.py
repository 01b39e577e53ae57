"""The one table between our variables and DeepMind's parameter tree.

DeepMind's files hold {module: {name: array}}, as Haiku names them. Kernels have
the same layout (HWIO, IO) in both.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.layers import ClassifierHead, WSConv2D
from nfnets_tf.models.nfnet import NFBlock

_ROOT = "NFNet/~"
_CONVOLUTIONS = ("conv0", "conv1", "conv1b", "conv2", "conv_shortcut")


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
      table.update(_linear(f"{_ROOT}/linear", layer))
  return table


def _block(module: str, block: NFBlock) -> dict:
  table = {(module, "skip_gain"): block.skip_gain}
  for name in _CONVOLUTIONS:
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


def assign_parameters(
  network: keras.Model, parameters: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
  """Gives every variable of `network` its array; none may be left over.

  Args:
    network: an `NFNet`.
    parameters: {module: {name: array}} as DeepMind's files hold them.

  Raises:
    ValueError: if arrays are missing, left over or of another shape; it lists
      them, and nothing has been assigned.
  """
  table = parameter_table(network)
  given = {
    (module, name): array
    for module, arrays in parameters.items()
    for name, array in arrays.items()
  }
  faults = [f"missing {':'.join(key)}" for key in table.keys() - given.keys()]
  faults += [f"unknown {':'.join(key)}" for key in given.keys() - table.keys()]
  faults += [
    f"{':'.join(key)} has shape {np.shape(given[key])}, not {tuple(v.shape)}"
    for key, v in table.items()
    if key in given and np.shape(given[key]) != tuple(v.shape)
  ]
  if faults:
    raise ValueError(
      f"{len(faults)} parameters do not fit the network:"
      f" {'; '.join(sorted(faults))}."
    )
  for key, variable in table.items():
    variable.assign(given[key])
