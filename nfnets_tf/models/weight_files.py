"""Reads DeepMind's and Keras' weight files; no code from a file is run.

DeepMind's published `F0_haiku.npz` to `F6_haiku.npz` are pickles despite their
suffix: {module: {name: array}}. Of Keras files the arrays are read, never the
configuration, which may name any class: Keras 2.15 imports it even with
`safe_mode=True`.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import new_file, refuse_pattern
from nfnets_tf.models.parameter_names import (
  HEAD_KEYS,
  LEFT_OVER,
  Key,
  ModuleNames,
  Parameters,
  by_module,
  split_name,
)
from nfnets_tf.models.restricted_pickle import (
  BoundedReader,
  PickledArray,
  RefusedError,
  RestrictedUnpickler,
)

_KERAS_WEIGHTS = "model.weights.h5"  # inside a .keras archive
# Where Keras 2.15 puts a head, and a `Classifier`'s averages.
_HEAD_PATHS = {
  "classifier/kernel:0": HEAD_KEYS[0],
  "layers/classifier_head/vars/0": HEAD_KEYS[0],
  "classifier/bias:0": HEAD_KEYS[1],
  "layers/classifier_head/vars/1": HEAD_KEYS[1],
}
_AVERAGES = ("top_level_model_weights/", "vars/")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NOT_WEIGHTS = ("metrics/", "optimizer/", "optimizer_weights/")


def read_parameters(path: str) -> Parameters:
  """Reads a parameter file in DeepMind's layout.

  Args:
    path: local or gs://, such as "F0_haiku.npz".

  Returns:
    {module: {name: float array of any shape}}.

  Raises:
    UserError: if the file asks for anything but arrays of floats in plain
      containers, is damaged, or does not hold parameters by module.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    try:
      content = RestrictedUnpickler(BoundedReader(file, file.size())).load()
    except RefusedError as error:
      raise UserError(
        f"the parameter file {path!r} was not opened: it asks for {error};"
        " expected NumPy arrays of floats in dictionaries, as in DeepMind's"
        " files; check where this one comes from."
      ) from error
    except Exception as error:  # a damaged stream can raise anything
      raise UserError(
        f"the parameter file {path!r} is not a complete pickle ({error});"
        " download it again."
      ) from error
  if not _are_parameters(content):
    raise UserError(
      f"the parameter file {path!r} does not hold parameters by module;"
      " expected {module: {name: array of floats}}, as in DeepMind's"
      " F0_haiku.npz."
    )
  return {
    module: {name: leaf.array for name, leaf in leaves.items()}
    for module, leaves in content.items()
  }


def write_parameters(path: str, parameters: Parameters) -> None:
  """Writes parameters in DeepMind's layout, for any reader of pickles.

  Args:
    path: of the file, such as "F0_haiku.npz"; must not exist.
    parameters: {module: {name: array of any shape}}.

  Raises:
    UserError: if the file exists.
  """
  with new_file(path) as file:
    # Protocol 4 has frames for arrays above 4 GB, and old readers know it.
    file.write(pickle.dumps(parameters, protocol=4))


def read_keras_arrays(path: str) -> dict[str, np.ndarray]:
  """Reads the weights of a Keras file, without metrics and optimizer state.

  Args:
    path: ends in .keras, .h5 or .hdf5; local or gs://.

  Returns:
    {path inside the file: array of any shape}.

  Raises:
    UserError: if the file is damaged or not a Keras file.
  """
  with tf.io.gfile.GFile(path, "rb") as file:
    content = io.BytesIO(file.read())
  arrays = {}

  def keep(name, item):
    if isinstance(item, h5py.Dataset) and not name.startswith(_NOT_WEIGHTS):
      arrays[name] = item[()]

  try:
    if path.endswith(".keras") or zipfile.is_zipfile(content):
      with zipfile.ZipFile(content) as archive:
        content = io.BytesIO(archive.read(_KERAS_WEIGHTS))
    with h5py.File(content, "r") as file:
      file.visititems(keep)
  except (zipfile.BadZipFile, KeyError, OSError) as error:
    raise UserError(
      f"the Keras file {path!r} cannot be read ({error}); save the model again,"
      " or choose another file."
    ) from error
  return arrays


def match_keras_arrays(
  path: str,
  arrays: dict[str, np.ndarray],
  variables: Sequence[tf.Variable],
  modules: Sequence[ModuleNames],
  averaged: bool,
) -> dict[Key, np.ndarray]:
  """Matches the arrays of a Keras file with the parameters of a network.

  Args:
    path: of the file, for messages.
    arrays: {path inside the file: array}; what is matched is removed.
    variables: of the network, in Keras' order.
    modules: of the network.
    averaged: whether averages are taken if the file has them.

  Returns:
    {(module, name): array}; what matches nothing is in the module `LEFT_OVER`.

  Raises:
    UserError: if the averages cannot be matched.
  """
  averages = {  # average_0:0, ... or vars/0, ...
    int(re.search(r"(\d+)(:0)?$", name)[1]): arrays.pop(name)
    for name in list(arrays)
    if name.startswith(_AVERAGES)
  }
  matched = {}
  for place, key in (*_keras_paths(modules), *_HEAD_PATHS.items()):
    # Or at the end of a longer path: below a Classifier's network.
    for name in [n for n in arrays if n == place or n.endswith(f"/{place}")]:
      matched[key] = arrays.pop(name)
      break
  if averaged and averages and not arrays:
    # Averages are in the order of the variables, whose head comes last.
    keys = {id(v): key for key, v in _parameters(modules)}
    body = [keys[id(v)] for v in variables]
    body = [key for key in body if key not in HEAD_KEYS]
    order = [key for key in (*body, *HEAD_KEYS) if key in matched]
    if len(order) != len(averages):
      raise UserError(
        f"the Keras file {path!r} has {len(averages)} averages of"
        f" {len(order)} variables; use averaged=False."
      )
    matched = {key: averages[i] for i, key in enumerate(order)}
  left_over = {(LEFT_OVER, name): array for name, array in arrays.items()}
  return {**matched, **left_over}


def _parameters(modules: Sequence[ModuleNames]):
  """Yields (key, variable) of every parameter."""
  for module in modules:
    for name, variable in zip(module.names, module.variables):
      yield (module.module, name), variable


def _keras_paths(modules: Sequence[ModuleNames]) -> Iterator[tuple[str, Key]]:
  """Yields (end of the path in a file, key) of every parameter and layout."""
  for key, variable in _parameters(modules):
    yield variable.name, key  # .h5 of save and save_weights
  for module in modules:
    for index, name in enumerate(module.names):
      yield f"{module.keras_folder}/vars/{index}", (module.module, name)


def read_checkpoint(path: str, prefix: str, averaged: bool) -> Parameters:
  """Reads the variables of a checkpoint or SavedModel that this project wrote.

  Args:
    path: of the checkpoint or SavedModel, for messages.
    prefix: of TensorFlow's files.
    averaged: whether averages are taken if there are any.

  Returns:
    {module: {name: array of any shape}}.

  Raises:
    UserError: if there are none, or they are folded for serving.
  """
  refuse_pattern("the checkpoint", prefix)
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
  return by_module(arrays)


def _are_parameters(content) -> bool:
  return isinstance(content, dict) and all(
    isinstance(module, str)
    and isinstance(leaves, dict)
    and all(
      isinstance(name, str)
      and type(leaf) is PickledArray
      and hasattr(leaf, "array")
      for name, leaf in leaves.items()
    )
    for module, leaves in content.items()
  )
