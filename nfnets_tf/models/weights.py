"""Weights of NFNets: their names, and loading them from any kind of file.

One table maps the variables of an `NFNet` to DeepMind's parameter tree,
{module: {name: array}} as Haiku names it; kernels have the same layout (HWIO,
IO) in both. Checkpoints and SavedModels of this project use the same names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError, refuse_keras3
from nfnets_tf.fileio import latest_checkpoint
from nfnets_tf.keras_api import keras
from nfnets_tf.models import sparse_kernels, weight_files
from nfnets_tf.models.file_formats import file_format, named_by
from nfnets_tf.models.layers import ClassifierHead, SqueezeExcite, WSConv2D
from nfnets_tf.models.parameter_names import (
  HEAD,
  HEAD_KEYS,
  ROOT,
  ModuleNames,
  Parameters,
  by_module,
  check_fit,
  join_name,
)
from nfnets_tf.models.pretrained import Published
from nfnets_tf.models.safetensors_files import (
  read_safetensors,
  write_safetensors,
)
from nfnets_tf.models.timm_layout import from_timm, to_timm
from nfnets_tf.models.torch_files import read_torch
from nfnets_tf.ranges import PATH, accepts, built, flag, optional

LOGGER = logging.getLogger("nfnets_tf")

_TIMM_CONVOLUTIONS = {
  "conv0": "conv1",
  "conv1": "conv2",
  "conv1b": "conv2b",
  "conv2": "conv3",
  "conv_shortcut": "downsample.conv",
}
_EXPECTED = (
  "expected a parameter file of DeepMind's, timm's .safetensors or .pth of a"
  " dm_nfnet, a run's work directory or checkpoint, a SavedModel of this"
  " project, or a .keras or .h5 file."
)


def parameter_table(
  network: keras.Model,
) -> dict[tuple[str, str], tf.Variable]:
  """Returns {(module, name): variable} for every variable of an `NFNet`.

  Variables are float32 of any shape; another network has none.
  """
  return {
    (module.module, name): variable
    for module in _modules(network)
    for name, variable in zip(module.names, module.variables)
  }


def _modules(network: keras.Model) -> Iterator[ModuleNames]:
  """Yields the modules of an `NFNet`; none of another network."""
  # Keras 2.15 names the folders of a file after the classes, numbered in order.
  counts = {"ws_conv2d": 0, "nf_block": 0}

  def folder(kind):
    number, counts[kind] = counts[kind], counts[kind] + 1
    return f"layers/{kind}_{number}" if number else f"layers/{kind}"

  stage, block = -1, 0
  for layer in network.layers:
    module = f"{ROOT}/{layer.name}"
    if isinstance(layer, WSConv2D):
      number = layer.name.replace("stem_conv", "")
      timm = f"stem.conv{int(number) + 1}" if number.isdigit() else layer.name
      names = ("w", "gain", "bias")
      place = folder("ws_conv2d")
      yield ModuleNames(module, place, timm, names, layer.variables)
    elif isinstance(layer, ClassifierHead):
      place, names = "layers/classifier_head", ("w", "b")
      yield ModuleNames(HEAD, place, "head.fc", names, layer.variables)
    elif isinstance(getattr(layer, "squeeze_excite", None), SqueezeExcite):
      starts = layer.conv_shortcut is not None  # the first block of a stage
      stage, block = (stage + 1, 0) if starts else (stage, block + 1)
      timm = f"stages.{stage}.{block}"
      yield from _block_modules(layer, module, folder("nf_block"), timm)


def _block_modules(
  block: keras.layers.Layer, module: str, folder: str, timm: str
) -> Iterator[ModuleNames]:
  """Yields the modules of an `NFBlock`, itself first."""
  yield ModuleNames(module, folder, timm, ("skip_gain",), [block.skip_gain])
  for name, theirs in _TIMM_CONVOLUTIONS.items():
    if (convolution := getattr(block, name)) is not None:
      yield ModuleNames(
        f"{module}/~/{name}",
        f"{folder}/{name}",
        f"{timm}.{theirs}",
        ("w", "gain", "bias"),
        convolution.variables,
      )
  for name, deepminds, theirs in (
    ("reduce", "linear", "fc1"),
    ("expand", "linear_1", "fc2"),
  ):
    yield ModuleNames(
      f"{module}/~/squeeze_excite/~/{deepminds}",
      f"{folder}/squeeze_excite/{name}",
      f"{timm}.attn_last.{theirs}",
      ("w", "b"),
      getattr(block.squeeze_excite, name).variables,
    )


def named_variables(network: keras.Model) -> dict[str, tf.Variable]:
  """Returns {name: variable, of any shape} of all variables of a network.

  Those of an `NFNet` have DeepMind's names, with "|" for "/":
  "NFNet|~|stem_conv0:w". Those of another network are numbered.
  """
  if _is_nfnet(network):
    table = parameter_table(network)
    return {join_name(*key): variable for key, variable in table.items()}
  return {f"variable_{i}": v for i, v in enumerate(network.variables)}


def _is_nfnet(network: keras.Model) -> bool:
  """Returns whether all variables are those of an `NFNet`'s layers."""
  table = {id(v) for v in parameter_table(network).values()}
  return bool(table) and table == {id(v) for v in network.variables}


def get_parameters(network: keras.Model) -> Parameters:
  """Returns the values of an `NFNet`, float32 of any shape, as DeepMind's."""
  return by_module(
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
    return keep_head or key[0] != HEAD

  table = {k: v for k, v in parameter_table(network).items() if needed(k)}
  arrays = {
    (module, name): array
    for module, members in parameters.items()
    for name, array in members.items()
    if needed((module, name))
  }
  check_fit(table, arrays)
  for key, variable in table.items():
    # One at a time: a view of a file's half precision, or expanded, is small.
    variable.assign(np.asarray(arrays[key], np.float32))


def load_weights(
  model: keras.Model,
  path: str,
  *,
  keep_head: bool | None = True,
  averaged: bool = True,
  published: Published | None = None,
) -> None:
  """Loads all weights of an NFNet from a file, or raises.

  `path` is one of
    - "imagenet": DeepMind's weights of F0 to F6, downloaded once;
    - the URL of one of the files below, at its end #sha256=... if one is known;
    - a parameter file of DeepMind's, such as F0_haiku.npz;
    - timm's weights of a `dm_nfnet`: .safetensors, or .pth, .bin and .tar of
      torch.save, also inside a training script's checkpoint;
    - a run's work directory, its checkpoints folder, or one checkpoint;
    - a SavedModel that was exported with fold=False;
    - a .keras or .h5 file of an `NFNet` or a `Classifier`, or the .h5 of an
      NFNet's weights only.

  Nothing that the file may hold is executed. The image size may differ from
  that of the weights' training.

  Args:
    model: an `NFNet`, or a `Classifier` around one, whose averages restart from
      the loaded weights.
    path: local, gs:// or https://.
    keep_head: whether the classifier is loaded; False keeps the model's own,
      for other classes, and None does so where the classes are not as many.
    averaged: whether to load the averages of the weights where the file has
      them, or the raw weights.
    published: where "imagenet" is and downloads are kept; None is the default.

  Raises:
    UserError: if the file is none of these, or a variable is missing in it,
      left over, or of another shape; it lists them and changes nothing.
    RunError: if a download fails.
  """
  refuse_keras3("load_weights", model)
  network = getattr(model, "network", model)
  if not _is_nfnet(network):
    raise UserError(
      f"load_weights received a {type(network).__name__}; expected an NFNet, or"
      " a Classifier around one."
    )
  variant = getattr(network, "variant", None)
  path = (published or Published()).locate(os.fspath(path), variant)
  kind, parameters = _read(path, network, averaged)
  if keep_head is None:
    keep_head = _has_same_classes(network, parameters)
    if not keep_head and HEAD_KEYS[0] in parameter_table(network):
      LOGGER.warning(
        "The classifier is new: %r has no head of as many classes.", path
      )
  try:
    assign_parameters(network, parameters, keep_head=keep_head)
  except UserError as error:
    raise UserError(f"{kind} {path!r}: {error}") from error
  sparse_kernels.warn_of_zeros(network, path)
  if model is not network:
    model.restart_averages()
  head = "loaded" if keep_head else "newly initialized"
  LOGGER.info("Loaded %s %s; the classifier is %s.", kind, path, head)


def _has_same_classes(network: keras.Model, parameters: Parameters) -> bool:
  """Returns whether parameters have a head of as many classes."""
  head = parameter_table(network).get(HEAD_KEYS[1])
  bias = parameters.get(HEAD, {}).get("b")
  return head is not None and np.shape(bias) == tuple(head.shape)


@accepts(path=optional(PATH), keep_head=flag(), averaged=flag())
@accepts(published=optional(built("@pretrained.Published()")))
class InitWeights:
  """The initial weights of a run; called with its `Classifier`.

  Args:
    path: see `load_weights`; None is from scratch.
    keep_head: see `load_weights`.
    averaged: see `load_weights`.
    variant: of the network; "imagenet" must have weights of it.
    published: see `load_weights`.
  """

  def __init__(
    self,
    *,
    path: str | None,
    keep_head: bool,
    averaged: bool,
    variant: str | None = None,
    published: Published | None = None,
  ):
    self.path, self.variant = path, variant
    self.keep_head, self.averaged = keep_head, averaged
    self.published = published or Published()
    if variant is not None:
      self.describe()  # raises before anything is built

  def __call__(self, model: keras.Model) -> None:
    if self.path is not None:
      load_weights(
        model,
        self.path,
        keep_head=self.keep_head,
        averaged=self.averaged,
        published=self.published,
      )

  def locate(self) -> str:
    """Returns the path of the weights, downloaded if need be."""
    return self.published.locate(self.path, self.variant)

  def check(self) -> None:
    """Downloads what has a URL, or checks that something is at the path.

    Raises:
      UserError: if nothing exists at the path.
      RunError: if a download fails.
    """
    if self.path is None:
      return
    path = self.locate()  # of a checkpoint a prefix
    if not any(map(tf.io.gfile.exists, (path, f"{path}.index"))):
      raise UserError(f"{path!r} does not exist; {_EXPECTED}")

  def describe(self) -> str:
    """Returns the origin of the weights in words; downloads nothing.

    Raises:
      UserError: if no weights of the variant were published.
    """
    if self.path is None:
      return "from scratch"
    origin = self.published.describe(self.path, self.variant)
    return f"{origin}, {'with its' if self.keep_head else 'with a new'} head"


def save_timm(model: keras.Model, path: str) -> None:
  """Writes an NFNet's weights for timm's `dm_nfnet`, as safetensors.

  Args:
    model: an `NFNet` or a `Classifier` around one.
    path: of the file, such as "model.safetensors"; must not exist.

  Raises:
    UserError: if the file exists or has another suffix.
  """
  path = os.fspath(path)
  if not path.endswith(".safetensors"):
    raise UserError(
      f"save_timm received {path!r}; expected the suffix .safetensors, by which"
      " timm knows the format."
    )
  write_safetensors(path, to_timm(_modules(getattr(model, "network", model))))


def save_deepmind(model: keras.Model, path: str) -> None:
  """Writes an NFNet's weights in the layout of DeepMind's files.

  Args:
    model: an `NFNet` or a `Classifier` around one.
    path: of the file, such as "F0_haiku.npz"; must not exist.

  Raises:
    UserError: if the file exists.
  """
  parameters = get_parameters(getattr(model, "network", model))
  weight_files.write_parameters(os.fspath(path), parameters)


def _read(
  path: str, network: keras.Model, averaged: bool
) -> tuple[str, Parameters]:
  """Returns (kind of the file, its parameters)."""
  exists, join = tf.io.gfile.exists, os.path.join
  path = named_by(path)
  if exists(path) and not tf.io.gfile.isdir(path):
    return _read_file(path, network, averaged)
  if exists(join(path, "saved_model.pb")):
    prefix = join(path, "variables", "variables")
    return "the SavedModel", weight_files.read_checkpoint(
      path, prefix, averaged
    )
  for folder in (join(path, "checkpoints"), path):
    if prefix := latest_checkpoint(folder):
      return "the checkpoint", weight_files.read_checkpoint(
        path, prefix, averaged
      )
  if exists(f"{path}.index"):
    return "the checkpoint", weight_files.read_checkpoint(path, path, averaged)
  state = "holds no weights" if exists(path) else "does not exist"
  raise UserError(f"{path!r} {state}; {_EXPECTED}")


def _read_file(
  path: str, network: keras.Model, averaged: bool
) -> tuple[str, Parameters]:
  """Returns (kind of the file, its parameters); its content decides."""
  kind = file_format(path)
  if kind == "keras":
    arrays = weight_files.read_keras_arrays(path)
    matched = weight_files.match_keras_arrays(
      path, arrays, network.variables, list(_modules(network)), averaged
    )
    return "the Keras file", by_module(matched)
  if kind == "pickle":
    return "the parameter file", weight_files.read_parameters(path)
  reader = read_safetensors if kind == "safetensors" else read_torch
  arrays = from_timm(path, reader(path), _modules(network), averaged)
  return "the PyTorch file", by_module(arrays)
