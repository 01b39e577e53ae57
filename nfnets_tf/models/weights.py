"""Weights of NFNets: their names, and loading them from any kind of file.

One table maps the variables of an `NFNet` to DeepMind's parameter tree,
{module: {name: array}} as Haiku names it; kernels have the same layout (HWIO,
IO) in both. Checkpoints and SavedModels of this project use the same names.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError, refuse_keras3
from nfnets_tf.fileio import latest_checkpoint
from nfnets_tf.keras_api import keras
from nfnets_tf.models.layers import ClassifierHead, WSConv2D
from nfnets_tf.models.nfnet import NFBlock, NFNet
from nfnets_tf.models.weight_files import (
  Parameters,
  read_keras_arrays,
  read_parameters,
  write_parameters,
)

LOGGER = logging.getLogger("nfnets_tf")

_ROOT = "NFNet/~"
_HEAD = f"{_ROOT}/linear"
_HEAD_KEYS = ((_HEAD, "w"), (_HEAD, "b"))
_CONVOLUTIONS = ("conv0", "conv1", "conv1b", "conv2", "conv_shortcut")
# Keras 2.15 names the folders of a file after the classes, numbered in order.
_FOLDERS = {
  WSConv2D: "ws_conv2d",
  NFBlock: "nf_block",
  ClassifierHead: "classifier_head",
}
# Where it puts a head, and a `Classifier`'s averages.
_HEAD_PATHS = {
  "classifier/kernel:0": _HEAD_KEYS[0],
  "layers/classifier_head/vars/0": _HEAD_KEYS[0],
  "classifier/bias:0": _HEAD_KEYS[1],
  "layers/classifier_head/vars/1": _HEAD_KEYS[1],
}
_AVERAGES = ("top_level_model_weights/", "vars/")
_SEPARATOR = "|"  # "/" would be escaped in a checkpoint's keys
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_KERAS = (".keras", ".h5", ".hdf5")
_EXPECTED = (
  "expected a parameter file of DeepMind's, a run's work directory or"
  " checkpoint, a SavedModel of this project, or a .keras or .h5 file."
)


def parameter_table(
  network: keras.Model,
) -> dict[tuple[str, str], tf.Variable]:
  """Returns {(module, name): variable} for every variable of an `NFNet`.

  Variables are float32 of any shape; another network has none.
  """
  return {
    (module, name): variable
    for module, _, names, variables in _parameter_groups(network)
    for name, variable in zip(names, variables)
  }


def _parameter_groups(network: keras.Model):
  """Yields (DeepMind's module, Keras' folder, DeepMind's names, variables)."""
  counts = dict.fromkeys(_FOLDERS, 0)
  for layer in network.layers:
    kind = next((kind for kind in _FOLDERS if isinstance(layer, kind)), None)
    if kind is None:
      continue
    number, counts[kind] = counts[kind], counts[kind] + 1
    folder = f"layers/{_FOLDERS[kind]}" + (f"_{number}" if number else "")
    module = _HEAD if kind is ClassifierHead else f"{_ROOT}/{layer.name}"
    if kind is not NFBlock:
      names = ("w", "gain", "bias") if kind is WSConv2D else ("w", "b")
      yield module, folder, names, layer.variables
      continue
    yield module, folder, ("skip_gain",), [layer.skip_gain]
    for name in _CONVOLUTIONS:
      if (convolution := getattr(layer, name)) is not None:
        names, variables = ("w", "gain", "bias"), convolution.variables
        yield f"{module}/~/{name}", f"{folder}/{name}", names, variables
    for ours, theirs in (("reduce", "linear"), ("expand", "linear_1")):
      dense = getattr(layer.squeeze_excite, ours)
      place = f"{folder}/squeeze_excite/{ours}"
      theirs = f"{module}/~/squeeze_excite/~/{theirs}"
      yield theirs, place, ("w", "b"), dense.variables


def named_variables(network: keras.Model) -> dict[str, tf.Variable]:
  """Returns {name: variable, of any shape} of all variables of a network.

  Those of an `NFNet` have DeepMind's names, with "|" for "/":
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


def get_parameters(network: keras.Model) -> Parameters:
  """Returns the values of an `NFNet`, float32 of any shape, as DeepMind's."""
  return _by_module(
    {key: v.numpy() for key, v in parameter_table(network).items()}
  )


def assign_parameters(
  network: keras.Model,
  parameters: Mapping[str, Mapping[str, np.ndarray]],
  *,
  keep_head: bool = True,
) -> None:
  """Assigns an array to every variable of `network`; none may be left over.

  Args:
    network: an `NFNet`.
    parameters: {module: {name: array}}, of the shapes of DeepMind's files.
    keep_head: whether the classifier is among them; if not, the network's own
      is kept and that of `parameters` is ignored.

  Raises:
    UserError: if arrays are missing, left over or of another shape; it lists
      them, and nothing has been assigned.
  """

  def needed(key):
    return keep_head or key[0] != _HEAD

  table = {k: v for k, v in parameter_table(network).items() if needed(k)}
  arrays = {
    (module, name): array
    for module, members in parameters.items()
    for name, array in members.items()
    if needed((module, name))
  }
  _check_fit(table, arrays)
  for key, variable in table.items():
    variable.assign(arrays[key])


def _check_fit(table: Mapping, arrays: Mapping) -> None:
  """Raises a UserError unless `arrays` has exactly the shapes of `table`."""
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
  if {module for module, _ in affected} == {_HEAD}:
    hint = "; only the classifier differs: use keep_head=False."
  raise UserError(
    f"the parameters do not fit the network: {'; '.join(lists)}{hint}"
  )


def load_weights(
  model: keras.Model,
  path: str,
  *,
  keep_head: bool = True,
  averaged: bool = True,
) -> None:
  """Loads all weights of an NFNet from a file, or raises.

  `path` is one of
    - a parameter file of DeepMind's, such as F0_haiku.npz;
    - a run's work directory, its checkpoints folder, or one checkpoint;
    - a SavedModel that was exported with fold=False;
    - a .keras or .h5 file of an `NFNet` or a `Classifier`, or the .h5 of an
      NFNet's weights only.

  Nothing that the file may hold is executed. The image size may differ from
  that of the weights' training.

  Args:
    model: an `NFNet`, or a `Classifier` around one, whose averages restart from
      the loaded weights.
    path: local or gs://.
    keep_head: whether the classifier is loaded; False keeps the model's own,
      for other classes.
    averaged: whether to load the averages of the weights where the file has
      them, or the raw weights.

  Raises:
    UserError: if the file is none of these, or a variable is missing in it,
      left over, or of another shape; it lists them and changes nothing.
  """
  refuse_keras3("load_weights", model)
  network = getattr(model, "network", model)
  if not isinstance(network, NFNet):
    raise UserError(
      f"load_weights received a {type(network).__name__}; expected an NFNet, or"
      " a Classifier around one."
    )
  path = os.path.expanduser(path)
  kind, parameters = _read(path, network, averaged)
  try:
    assign_parameters(network, parameters, keep_head=keep_head)
  except UserError as error:
    raise UserError(f"{kind} {path!r}: {error}") from error
  if model is not network:
    model.restart_averages()
  head = "loaded" if keep_head else "newly initialized"
  LOGGER.info("Loaded %s %s; the classifier is %s.", kind, path, head)


class InitWeights:
  """The initial weights of a run; called with its `Classifier`.

  Args:
    path: see `load_weights`; None is from scratch.
    keep_head: see `load_weights`.
    averaged: see `load_weights`.
  """

  def __init__(self, *, path: str | None, keep_head: bool, averaged: bool):
    self.path = path
    self.keep_head = keep_head
    self.averaged = averaged

  def __call__(self, model: keras.Model) -> None:
    if self.path is not None:
      load_weights(
        model, self.path, keep_head=self.keep_head, averaged=self.averaged
      )

  def check(self) -> None:
    """Raises a UserError if nothing exists at the path."""
    if self.path is None:
      return
    path = os.path.expanduser(self.path)
    exists = tf.io.gfile.exists  # a checkpoint's path is a prefix
    if not exists(path) and not exists(f"{path}.index"):
      raise UserError(f"{path!r} does not exist; {_EXPECTED}")

  def describe(self) -> str:
    """Returns the origin of the weights in words."""
    if self.path is None:
      return "from scratch"
    return f"{self.path}, {'with its' if self.keep_head else 'with a new'} head"


def save_deepmind(model: keras.Model, path: str) -> None:
  """Writes an NFNet's weights in the layout of DeepMind's files.

  Args:
    model: an `NFNet` or a `Classifier` around one.
    path: of the file, such as "F0_haiku.npz"; must not exist.

  Raises:
    UserError: if the file exists.
  """
  write_parameters(path, get_parameters(getattr(model, "network", model)))


def _read(path: str, network: NFNet, averaged: bool) -> tuple[str, Parameters]:
  """Returns (kind of the file, its parameters)."""
  exists, join = tf.io.gfile.exists, os.path.join
  if path.endswith(_KERAS) and exists(path):
    return "the Keras file", _from_keras(path, network, averaged)
  if exists(join(path, "saved_model.pb")):
    prefix = join(path, "variables", "variables")
    return "the SavedModel", _from_checkpoint(path, prefix, averaged)
  for folder in (join(path, "checkpoints"), path):
    if prefix := latest_checkpoint(folder):
      return "the checkpoint", _from_checkpoint(path, prefix, averaged)
  if exists(f"{path}.index"):
    return "the checkpoint", _from_checkpoint(path, path, averaged)
  if exists(path) and not tf.io.gfile.isdir(path):
    return "the parameter file", read_parameters(path)
  state = "holds no weights" if exists(path) else "does not exist"
  raise UserError(f"{path!r} {state}; {_EXPECTED}")


def _from_checkpoint(path: str, prefix: str, averaged: bool) -> Parameters:
  """Reads the variables that `named_variables` named."""
  reader = tf.train.load_checkpoint(prefix)
  keys = reader.get_variable_to_shape_map()
  if any(key.startswith("folded/") for key in keys):
    raise UserError(
      f"{path!r} is folded for serving: its kernels are not those of training;"
      " use the run's checkpoint, or export with export.Exporter.fold = False."
    )
  arrays = {}
  for key in keys:
    if key.startswith("parameters/") and key.endswith(_VALUE):
      name = key[len("parameters/") : -len(_VALUE)]
      average = f"averages/{name}{_VALUE}"
      key = average if averaged and average in keys else key
      arrays[split_name(name)] = reader.get_tensor(key)
  if not arrays:
    raise UserError(
      f"{path!r} holds no parameters by name; expected a checkpoint or a"
      " SavedModel that this project wrote."
    )
  return _by_module(arrays)


def _from_keras(path: str, network: NFNet, averaged: bool) -> Parameters:
  """Matches the arrays of a Keras file with the variables of `network`.

  What matches no variable is returned as the module "left over".
  """
  arrays = read_keras_arrays(path)
  averages = {  # average_0:0, ... or vars/0, ...
    int(re.search(r"(\d+)(:0)?$", name)[1]): arrays.pop(name)
    for name in list(arrays)
    if name.startswith(_AVERAGES)
  }
  matched = {}
  for place, key in (*_keras_paths(network), *_HEAD_PATHS.items()):
    # Or at the end of a longer path: below a Classifier's network.
    for name in [n for n in arrays if n == place or n.endswith(f"/{place}")]:
      matched[key] = arrays.pop(name)
      break
  if averaged and averages and not arrays:
    # Averages are in the order of the variables, whose head comes last.
    keys = {id(v): key for key, v in parameter_table(network).items()}
    body = [keys[id(v)] for v in network.variables]
    body = [key for key in body if key not in _HEAD_KEYS]
    order = [key for key in (*body, *_HEAD_KEYS) if key in matched]
    if len(order) != len(averages):
      raise UserError(
        f"the Keras file {path!r} has {len(averages)} averages of"
        f" {len(order)} variables; use averaged=False."
      )
    matched = {key: averages[i] for i, key in enumerate(order)}
  left_over = {("left over", name): array for name, array in arrays.items()}
  return _by_module({**matched, **left_over})


def _keras_paths(network: NFNet) -> Iterator[tuple[str, tuple[str, str]]]:
  """Yields (end of the path in a file, key) of every variable and layout."""
  for key, variable in parameter_table(network).items():
    yield variable.name, key  # .h5 of save and save_weights
  for module, folder, names, _ in _parameter_groups(network):
    for index, name in enumerate(names):
      yield f"{folder}/vars/{index}", (module, name)


def _by_module(arrays: Mapping[tuple[str, str], np.ndarray]) -> Parameters:
  parameters: Parameters = {}
  for (module, name), array in arrays.items():
    parameters.setdefault(module, {})[name] = array
  return parameters
