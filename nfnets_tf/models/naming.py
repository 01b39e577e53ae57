"""One name for every variable, in checkpoints and SavedModels alike."""

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models.deepmind import parameter_table

_SEPARATOR = "|"  # "/" would be escaped in a checkpoint's keys


def named_variables(network: keras.Model) -> dict[str, tf.Variable]:
  """Returns {name: variable} of all variables of a network.

  Those of an `NFNet` are called as DeepMind calls them, with "|" for "/":
  "NFNet|~|stem_conv0:w". Those of another network are numbered.
  """
  table = parameter_table(network)
  if {id(v) for v in table.values()} == {id(v) for v in network.variables}:
    return {join_name(*key): variable for key, variable in table.items()}
  return {f"variable_{i}": v for i, v in enumerate(network.variables)}


def join_name(module: str, parameter: str) -> str:
  """Returns the name of a parameter of one of DeepMind's modules."""
  return f"{module.replace('/', _SEPARATOR)}:{parameter}"


def split_name(name: str) -> tuple[str, str]:
  """Returns the (module, parameter) that `join_name` joined."""
  module, _, parameter = name.rpartition(":")
  return module.replace(_SEPARATOR, "/"), parameter
