"""Compares an exported network with the network in training on real images."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.serving import converters
from nfnets_tf.serving.signatures import Network
from nfnets_tf.serving.versioning import list_files
from nfnets_tf.train.classifier import Classifier

_BATCH = 8
_MAX_ROUNDS, _MAX_SECONDS = 7, 2.0
_MAX_CALIBRATION = 100


@dataclasses.dataclass(frozen=True)
class ModelOutputs:
  """Logits, latency and size of one form of a network.

  Attributes:
    name: of the form.
    logits: float32 [images, classes].
    seconds: median latency of a batch of one image.
    num_bytes: size of its weights or its file.
  """

  name: str
  logits: np.ndarray
  seconds: float
  num_bytes: int

  def select(self, images: slice) -> ModelOutputs:
    """Returns the outputs for some of the images."""
    return dataclasses.replace(self, logits=self.logits[images])

  def max_relative_difference(self, reference: ModelOutputs) -> float:
    """Returns max |logits - reference| / max |reference|."""
    difference = np.abs(self.logits - reference.logits).max()
    return float(difference / np.abs(reference.logits).max())

  def top1(self, labels: np.ndarray) -> float:
    """Returns the fraction of images whose label, int [images], ranks first."""
    return float(np.mean(self.logits.argmax(-1) == labels))


def run_and_time(
  name: str,
  call: Callable[[np.ndarray], np.ndarray],
  images: np.ndarray,
  num_bytes: int,
) -> ModelOutputs:
  """Runs a form of a network on images, then times it on a single one.

  Args:
    name: of the form.
    call: maps images [batch, height, width, 3] to logits [batch, classes].
    images: [images, height, width, 3].
    num_bytes: size of its weights or its file.
  """
  starts = range(0, len(images), _BATCH)
  logits = [np.asarray(call(images[i : i + _BATCH])) for i in starts]
  call(images[:1])  # traces for a batch of one
  seconds = []
  while len(seconds) < _MAX_ROUNDS and sum(seconds) < _MAX_SECONDS:
    start = time.perf_counter()
    call(images[:1])
    seconds.append(time.perf_counter() - start)
  return ModelOutputs(
    name, np.concatenate(logits), statistics.median(seconds), num_bytes
  )


def describe(
  outputs: ModelOutputs, reference: ModelOutputs, labels: np.ndarray | None
) -> str:
  """Summarizes in one line how a form differs from the network in training.

  Args:
    outputs: of the form.
    reference: of the network in training, on the same images.
    labels: int [images], or None if they are unknown.
  """
  count = len(reference.logits)
  agreeing = np.sum(outputs.logits.argmax(-1) == reference.logits.argmax(-1))
  parts = [
    "largest difference"
    f" {outputs.max_relative_difference(reference):.1e} of the largest logit,"
    f" same class for {agreeing:,} of {count:,} images"
  ]
  if labels is not None:
    parts.append(
      f"top-1 {outputs.top1(labels):.2%} (in training:"
      f" {reference.top1(labels):.2%})"
    )
  parts += [
    f"{outputs.num_bytes / 1e6:,.1f} MB (in training:"
    f" {reference.num_bytes / 1e6:,.1f})",
    f"{outputs.seconds * 1e3:,.1f} ms per image (in training:"
    f" {reference.seconds * 1e3:,.1f})",
  ]
  return f"{outputs.name}: {'; '.join(parts)}"


class ExportVerifier:
  """Runs a network and its exports on the same images.

  Args:
    model: has the weights that are exported.
    images: preprocessed, uint8 [images, height, width, 3].
    labels: int [images], or None if they are unknown.
  """

  def __init__(
    self, model: Classifier, images: np.ndarray, labels: np.ndarray | None
  ):
    self._images, self._labels = images.astype(np.float32), labels
    call = tf.function(lambda x: model(x, training=False), autograph=False)
    size = converters.num_bytes(model.network.weights)
    self._reference = run_and_time("in training", call, self._images, size)

  def verify_saved_model(self, folder: str) -> str:
    """Loads a SavedModel and returns one line about its outputs."""
    served = tf.saved_model.load(folder)
    outputs = run_and_time(
      "SavedModel",
      # Past the preprocessing, which these images have been through.
      lambda images: served.network(images)[1],
      self._images,
      sum(tf.io.gfile.stat(path).length for path in list_files(folder)),
    )
    return describe(outputs, self._reference, self._labels)

  def convert_and_verify(
    self, file_format: str, folder: str, network: Network, module: tf.Module
  ) -> str:
    """Writes a file of another runtime and returns one line about its outputs.

    int8 is calibrated on some of the images and compared on the others.

    Args:
      file_format: one of `converters.FILES`.
      folder: that gets the file.
      network: maps preprocessed images to (features, logits).
      module: owner of the network's variables.

    Raises:
      UserError: if there are too few images.
    """
    calibration, held_out = self._images, slice(None)
    if file_format == converters.INT8:
      if len(self._images) < 2:
        raise UserError(
          f"the format {file_format!r} needs images for calibration and others"
          f" for the comparison, but {len(self._images)} was given; give more."
        )
      count = min(len(self._images) // 2, _MAX_CALIBRATION)
      calibration, held_out = self._images[:count], slice(count, None)
    name = converters.FILES[file_format]
    path = os.path.join(folder, name)
    converters.write(file_format, path, network, module, calibration)
    outputs = run_and_time(
      name,
      converters.open_file(file_format, path),
      self._images[held_out],
      tf.io.gfile.stat(path).length,
    )
    labels = None if self._labels is None else self._labels[held_out]
    return describe(outputs, self._reference.select(held_out), labels)
