"""Weights in Keras' .keras and .h5 files, read as plain arrays.

Keras' own loader makes whatever classes a file names; here the arrays alone are
read, from where Keras 2.15 puts those of an `NFNet` or a `Classifier`.
"""

import io
import re
import zipfile

import h5py
import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.models import deepmind
from nfnets_tf.models.layers import ClassifierHead, WSConv2D
from nfnets_tf.models.nfnet import NFBlock, NFNet

_WEIGHTS = "model.weights.h5"  # inside a .keras file
_STATE = ("metrics/", "optimizer/", "optimizer_weights/")
_AVERAGES = ("top_level_model_weights/", "vars/")
# Folders of Keras 2.15 are called after the classes, numbered in order.
_FOLDERS = {
  WSConv2D: "ws_conv2d",
  NFBlock: "nf_block",
  ClassifierHead: "classifier_head",
}

# Where a classifier is, for a network that has none.
_HEAD_PLACES = [
  (place, key)
  for key, places in zip(
    deepmind.HEAD_KEYS,
    [
      ("classifier/kernel:0", "layers/classifier_head/vars/0"),
      ("classifier/bias:0", "layers/classifier_head/vars/1"),
    ],
  )
  for place in places
]


def read_keras_file(
  path: str, network: NFNet, *, averaged: bool
) -> dict[str, dict[str, np.ndarray]]:
  """Returns {module: {name: array}} of a Keras file.

  Args:
    path: ends in .keras, .h5 or .hdf5.
    network: of the variant that the file is expected to hold.
    averaged: whether to take a `Classifier`'s averages, if it has them.

  Raises:
    UserError: if the file is no such file, or it has averages of other weights.
  """
  arrays = _read_arrays(path)
  averages = _averages_in_order(arrays)
  arrays = {k: v for k, v in arrays.items() if not k.startswith(_AVERAGES)}
  keys = {id(v): key for key, v in deepmind.parameter_table(network).items()}
  found = {}
  places = [(name, keys[id(v)]) for name, v in _places(network)]
  for name, key in (*places, *_HEAD_PLACES):
    # The one at the end of a longer path: below a Classifier's network.
    matches = [p for p in arrays if p == name or p.endswith(f"/{name}")]
    for match in matches[:1]:
      found[key] = arrays.pop(match)
  if averaged and averages and not arrays:
    ordered = _in_order(found, network, keys)
    if len(ordered) != len(averages):
      raise UserError(
        f"the Keras file {path!r} has {len(averages)} averages of"
        f" {len(ordered)} variables; give averaged=False."
      )
    found = dict(zip(ordered, averages))
  parameters = {"left over": arrays} if arrays else {}
  for (module, name), array in found.items():
    parameters.setdefault(module, {})[name] = array
  return parameters


def _read_arrays(path: str) -> dict[str, np.ndarray]:
  """Returns {path in the file: array}, without metrics and optimizers."""
  with tf.io.gfile.GFile(path, "rb") as file:
    content = io.BytesIO(file.read())
  try:
    if path.endswith(".keras"):
      with zipfile.ZipFile(content) as archive:
        content = io.BytesIO(archive.read(_WEIGHTS))
    arrays = {}

    def keep(name, item):
      if isinstance(item, h5py.Dataset) and not name.startswith(_STATE):
        arrays[name] = item[()]

    with h5py.File(content, "r") as file:
      file.visititems(keep)
  except (zipfile.BadZipFile, KeyError, OSError) as error:
    raise UserError(
      f"the Keras file {path!r} cannot be read ({error}); save the model again,"
      " or name another file."
    ) from error
  return arrays


def _averages_in_order(arrays) -> list[np.ndarray]:
  """Returns a classifier's averages: average_0:0, ... or vars/0, ..."""

  def number(path):
    return int(re.search(r"(\d+)(:0)?$", path)[1])

  paths = [path for path in arrays if path.startswith(_AVERAGES)]
  return [arrays[path] for path in sorted(paths, key=number)]


def _in_order(found, network, keys) -> list:
  """Sorts keys as the variables of a network, whose classifier comes last."""
  sorted_keys = [keys[id(variable)] for variable in network.variables]
  body = [key for key in sorted_keys if key not in deepmind.HEAD_KEYS]
  return [key for key in (*body, *deepmind.HEAD_KEYS) if key in found]


def _places(network: NFNet):
  """Yields (end of the path in a file, variable) for every layout."""
  for variable in network.variables:
    yield variable.name, variable  # .h5 of save and save_weights
  counts = dict.fromkeys(_FOLDERS, 0)
  for layer in network.layers:
    if (kind := type(layer)) in _FOLDERS:
      number, counts[kind] = counts[kind], counts[kind] + 1
      folder = _FOLDERS[kind] + (f"_{number}" if number else "")
      yield from _members(layer, f"layers/{folder}")


def _members(layer, folder: str):
  """Yields (path, variable) of a layer and of the layers in it."""
  if not isinstance(layer, NFBlock):
    for index, variable in enumerate(layer.variables):
      yield f"{folder}/vars/{index}", variable
    return
  yield f"{folder}/vars/0", layer.skip_gain
  parts = {name: getattr(layer, name) for name in deepmind.CONVOLUTIONS}
  parts["squeeze_excite/reduce"] = layer.squeeze_excite.reduce
  parts["squeeze_excite/expand"] = layer.squeeze_excite.expand
  for name, part in parts.items():
    if part is not None:
      yield from _members(part, f"{folder}/{name}")
