"""Weights of others and of earlier runs, for a network to start from."""

from __future__ import annotations

import logging
import os

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.models import deepmind, haiku_pickle, naming
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.train.checkpoint_files import newest_in
from nfnets_tf.train.keras_files import read_keras_file

LOGGER = logging.getLogger("nfnets_tf")

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_EXPECTED = (
  "expected a parameter file of DeepMind's, a run's work directory or"
  " checkpoint, a SavedModel of this project, or a .keras or .h5 file."
)
_KERAS = (".keras", ".h5", ".hdf5")


def load_weights(
  model: keras.Model,
  path: str,
  *,
  keep_head: bool = True,
  averaged: bool = True,
) -> None:
  """Gives an NFNet the weights of a file; all of them, or it fails.

  `path` is one of
    - a parameter file of DeepMind's, such as F0_haiku.npz;
    - a run's work directory, its checkpoints folder, or one checkpoint;
    - a SavedModel that was exported with fold=False;
    - a .keras or .h5 file of an `NFNet` or a `Classifier`, or the .h5 of an
      NFNet's weights alone.

  Nothing that the file may hold is run. Images may have another size than those
  that the weights were trained on.

  Args:
    model: an `NFNet`, or a `Classifier` around one, whose averages start anew
      from the loaded weights.
    path: local or gs://.
    keep_head: whether the classifier is loaded too; False leaves the model's
      own as it is, for other classes.
    averaged: whether to take the averages of the weights where the file has
      them, or the raw weights.

  Raises:
    UserError: if the file is none of these, or a variable is missing in it,
      left over, or of another shape; it lists them and changes nothing.
  """
  network = getattr(model, "network", model)
  if not isinstance(network, NFNet):
    raise UserError(
      f"load_weights received a model of {type(network).__name__}; expected an"
      " NFNet, or a Classifier around one."
    )
  path = os.path.expanduser(path)
  kind, parameters = _read(path, network, averaged)
  try:
    deepmind.assign_parameters(network, parameters, keep_head=keep_head)
  except UserError as error:
    raise UserError(f"{kind} {path!r}: {error}") from error
  if model is not network:
    model.restart_averages()
  LOGGER.info(
    "Loaded %s %s; the classifier %s.",
    kind,
    path,
    "is its own" if keep_head else "starts anew",
  )


class Start:
  """What a run's network starts from; called with its `Classifier`.

  Args:
    path: see `load_weights`; None is from scratch.
    keep_head: see there.
    averaged: see there.
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
    """Raises a UserError if there is nothing at the path."""
    if self.path is None:
      return
    path = os.path.expanduser(self.path)
    exists = tf.io.gfile.exists  # a checkpoint's path is a prefix
    if not exists(path) and not exists(f"{path}.index"):
      raise UserError(f"{path!r} does not exist; {_EXPECTED}")

  def describe(self) -> str:
    """Returns in words what the network starts from."""
    if self.path is None:
      return "from scratch"
    return f"{self.path}, {'with its' if self.keep_head else 'another'} head"


def save_deepmind(model: keras.Model, path: str) -> None:
  """Writes an NFNet's weights in the layout of DeepMind's files.

  Args:
    model: an `NFNet` or a `Classifier` around one.
    path: of the file, such as "F0_haiku.npz"; must not exist.

  Raises:
    UserError: if the file exists.
  """
  network = getattr(model, "network", model)
  haiku_pickle.write_parameters(path, deepmind.parameters_of(network))


def _read(path: str, network: NFNet, averaged: bool):
  """Returns (what the file is, {module: {name: array}})."""
  exists, join = tf.io.gfile.exists, os.path.join
  if path.endswith(_KERAS) and exists(path):
    arrays = read_keras_file(path, network, averaged=averaged)
    return "the Keras file", arrays
  if exists(join(path, "saved_model.pb")):
    prefix = join(path, "variables", "variables")
    return "the SavedModel", _from_checkpoint(path, prefix, averaged)
  for folder in (join(path, "checkpoints"), path):
    if prefix := newest_in(folder) or tf.train.latest_checkpoint(folder):
      return "the checkpoint", _from_checkpoint(path, prefix, averaged)
  if exists(f"{path}.index"):
    return "the checkpoint", _from_checkpoint(path, path, averaged)
  if exists(path) and not tf.io.gfile.isdir(path):
    return "the parameter file", haiku_pickle.read_parameters(path)
  state = "holds none" if exists(path) else "does not exist"
  raise UserError(f"{path!r} {state}; {_EXPECTED}")


def _from_checkpoint(path: str, prefix: str, averaged: bool):
  """Reads the variables that `naming.named_variables` named."""
  reader = tf.train.load_checkpoint(prefix)
  keys = reader.get_variable_to_shape_map()
  names = [
    key[len("parameters/") : -len(_VALUE)]
    for key in keys
    if key.startswith("parameters/") and key.endswith(_VALUE)
  ]
  parameters = {}
  for name in names:
    key = f"averages/{name}{_VALUE}"
    if not averaged or key not in keys:
      key = f"parameters/{name}{_VALUE}"
    module, parameter = naming.split_name(name)
    parameters.setdefault(module, {})[parameter] = reader.get_tensor(key)
  if any(key.startswith("folded/") for key in keys):
    raise UserError(
      f"{path!r} is folded for serving: its kernels are not those of training;"
      " take the run's checkpoint, or export with export.Exporter.fold = False."
    )
  if not parameters:
    raise UserError(
      f"{path!r} holds no parameters by name; expected a checkpoint or a"
      " SavedModel that this project wrote."
    )
  return parameters
