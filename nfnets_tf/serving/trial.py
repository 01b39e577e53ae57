"""Running what was exported on real images, beside the network in training."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.serving import formats
from nfnets_tf.serving.comparison import ask, describe
from nfnets_tf.serving.signatures import Network
from nfnets_tf.serving.versions import files_below

_MAX_CALIBRATION = 100


class Trial:
  """Asks the network in training and what was made of it the same.

  Args:
    model: a `Classifier` with the weights that are exported.
    images: as the evaluation leaves them, uint8 [images, height, width, 3].
    labels: integers [images], or None if they are not known.
  """

  def __init__(
    self, model: keras.Model, images: np.ndarray, labels: np.ndarray | None
  ):
    self._images, self._labels = images.astype(np.float32), labels
    trained = tf.function(lambda x: model(x, training=False), autograph=False)
    size = formats.num_bytes(model.network.weights)
    self._before = ask("in training", trained, self._images, size)

  def saved_model(self, folder: str) -> str:
    """Returns in a line how a SavedModel compares."""
    served = tf.saved_model.load(folder)
    size = sum(tf.io.gfile.stat(x).length for x in files_below(folder))
    answers = ask(
      "SavedModel",
      # Behind the preprocessing: these images have had theirs.
      lambda images: served.network(images)[1],
      self._images,
      size,
    )
    return describe(answers, self._before, self._labels)

  def file(
    self, kind: str, folder: str, network: Network, module: tf.Module
  ) -> str:
    """Writes a file of `formats` and returns in a line how it compares.

    int8 takes its ranges from some of the images and is compared on the rest.

    Args:
      kind: the format.
      folder: that gets the file.
      network: maps prepared images to (features, logits).
      module: that the network's variables belong to.

    Raises:
      UserError: if there are too few images.
    """
    calibration, rest = self._images, slice(None)
    if kind == formats.INT8:
      if len(self._images) < 2:
        raise UserError(
          f"the format {kind!r} needs images to find its ranges, and others to"
          f" be tried on, but {len(self._images)} was given; give more."
        )
      share = min(len(self._images) // 2, _MAX_CALIBRATION)
      calibration, rest = self._images[:share], slice(share, None)
    name = formats.FILES[kind]
    path = os.path.join(folder, name)
    formats.write(kind, path, network, module, calibration)
    call = formats.open_file(kind, path)
    size = tf.io.gfile.stat(path).length
    labels = None if self._labels is None else self._labels[rest]
    answers = ask(name, call, self._images[rest], size)
    return describe(answers, self._before.of(rest), labels)
