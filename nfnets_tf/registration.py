"""Names under which Keras finds the classes in files, before they are imported.

`keras.models.load_model` looks classes up by name and knows those that have
been defined, so a file would load only after an import of the very classes.
Importing them all would make `import nfnets_tf` import TensorFlow. Instead
stand-ins are registered once Keras is imported, by whomever; the classes take
their places when they are defined.
"""

from __future__ import annotations

import importlib
import inspect

import wrapt

PACKAGE = "nfnets_tf"
MODULES = {
  "nfnets_tf.models.dropout": ("Dropout", "StochasticDepth"),
  "nfnets_tf.models.layers": (
    "SpatialMean",
    "WSConv2D",
    "ScaledActivation",
    "SqueezeExcite",
    "NFBlock",
    "ClassifierHead",
  ),
  "nfnets_tf.models.nfnet": ("NFNet",),
  "nfnets_tf.optim.adaptive_clipping": ("AGC",),
  "nfnets_tf.optim.pruning": ("Pruning",),
  "nfnets_tf.optim.sam": ("SAM",),
  "nfnets_tf.optim.sgd": ("SGD",),
  "nfnets_tf.train.classifier": ("Classifier",),
  "nfnets_tf.train.metrics": ("MeanLoss",),
}
# Whole HDF5 files name the model's class without its package.
HDF5_NAMES = ("NFNet",)


def register_when_keras_is_imported() -> None:
  """Registers the classes with Keras 2, now or when it is imported."""
  for keras in ("keras", "tf_keras"):
    wrapt.register_post_import_hook(_register, keras)


def _register(keras) -> None:
  if not keras.__version__.startswith("2."):
    return  # Keras 3, whose files are others
  registered = keras.saving.get_custom_objects()
  for module, names in MODULES.items():
    for name in names:
      stand_in = _stand_in(module, name)
      registered.setdefault(f"{PACKAGE}>{name}", stand_in)
      if name in HDF5_NAMES:
        registered.setdefault(name, stand_in)


def _stand_in(module: str, name: str) -> type:
  """Returns a class whose `from_config` is that of a class not yet imported."""

  def from_config(config, custom_objects=None):
    build = getattr(importlib.import_module(module), name).from_config
    if "custom_objects" in inspect.signature(build).parameters:
      return build(config, custom_objects=custom_objects)
    return build(config)

  members = {"from_config": staticmethod(from_config), "__module__": module}
  return type(name, (), members)
