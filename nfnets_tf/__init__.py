"""NFNets at scale in TensorFlow/Keras: the public face.

The names below are imported when they are first used, so that `import
nfnets_tf` itself takes no time.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
  "NFNet": "nfnets_tf.models.nfnet",
  "SGD": "nfnets_tf.optim.sgd",
  "AGC": "nfnets_tf.optim.adaptive_clipping",
  "SAM": "nfnets_tf.optim.sam",
  "Classifier": "nfnets_tf.train.classifier",
  "load_weights": "nfnets_tf.train.pretrained",
  "export_saved_model": "nfnets_tf.serving.export",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  raise AttributeError(f"module 'nfnets_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
