"""NFNets at scale in TensorFlow/Keras.

The public names are imported at their first use, so that `import nfnets_tf`
itself is immediate. It is enough for `keras.models.load_model`.
"""

import importlib

from nfnets_tf.registration import register_when_keras_is_imported

__version__ = "0.2.0"

_MODULES = {
  "keras": "nfnets_tf.keras_api",
  "NFNet": "nfnets_tf.models.nfnet",
  "SGD": "nfnets_tf.optim.sgd",
  "AGC": "nfnets_tf.optim.adaptive_clipping",
  "SAM": "nfnets_tf.optim.sam",
  "Pruning": "nfnets_tf.optim.pruning",
  "Classifier": "nfnets_tf.train.classifier",
  "load_weights": "nfnets_tf.models.weights",
  "export_saved_model": "nfnets_tf.serving.export",
}

__all__ = list(_MODULES)

register_when_keras_is_imported()


def __getattr__(name: str):
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  raise AttributeError(f"module 'nfnets_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
