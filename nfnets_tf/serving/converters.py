"""Converts a network for TFLite and ONNX, and verifies what is exported.

A converted file takes preprocessed images, float32 [batch, size, size, 3] in
[0, 255], and returns logits and probabilities, float32 [batch, classes]:
neither runtime has the bicubic resize of the evaluation. Every form, the
SavedModel too, is compared with the network in training on real images.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes
from nfnets_tf.serving.signatures import Network
from nfnets_tf.serving.versioning import list_files
from nfnets_tf.train.classifier import Classifier

INT8 = "tflite_int8"
# File name of each format.
FILES = {
  "tflite": "model.tflite",
  INT8: "model_int8.tflite",
  "onnx": "model.onnx",
}
# Protocol buffers and FlatBuffers have signed 32-bit sizes.
_MAX_BYTES = (1 << 31) - 1
_OPSET = 17
_BATCH = 8
_MAX_ROUNDS, _MAX_SECONDS = 7, 2.0
_MAX_CALIBRATION = 100

Call = Callable[[np.ndarray], np.ndarray]


def check_formats(names: Sequence[str]) -> None:
  """Checks that formats exist and that their converters are installed.

  Raises:
    UserError: if not.
  """
  if not isinstance(names, (list, tuple)) or not set(names) <= set(FILES):
    raise UserError(
      f"formats = {names!r} is invalid; expected a list of"
      f" {', '.join(map(repr, FILES))}."
    )
  missing = [
    package
    for package in ("tf2onnx", "onnxruntime")
    if "onnx" in names and importlib.util.find_spec(package) is None
  ]
  if missing:
    raise UserError(
      f"the format 'onnx' needs {' and '.join(missing)}, which are not"
      " installed; run pip install 'nfnets_tf[onnx]' or remove the format."
    )


def num_bytes(variables: Iterable[tf.Variable]) -> int:
  """Returns the size of variables in bytes."""
  return sum(v.dtype.size * v.shape.num_elements() for v in variables)


def write(
  file_format: str,
  path: str,
  network: Network,
  module: tf.Module,
  calibration: np.ndarray,
) -> None:
  """Writes a network in another format.

  Args:
    file_format: one of `FILES`.
    path: of the file.
    network: maps preprocessed images to (features, logits).
    module: owner of the network's variables.
    calibration: preprocessed images, float32 [images, size, size, 3], which
      give int8 its ranges and every format the size.

  Raises:
    UserError: if the weights exceed the size limit of the format.
  """
  size = num_bytes(module.variables)
  if size > _MAX_BYTES:
    raise UserError(
      f"weights of {size / 1e9:.1f} GB do not fit into a {file_format} file,"
      " which holds up to 2 GB; remove the format."
    )
  images = tf.TensorSpec([None, *calibration.shape[1:]], tf.float32, "images")

  @tf.function(input_signature=[images], autograph=False)
  def classify(images):
    _, logits = network(images)
    return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

  if file_format == "onnx":
    import tf2onnx  # optional, and takes seconds to import

    model, _ = tf2onnx.convert.from_function(
      classify, input_signature=[images], opset=_OPSET
    )
    content = model.SerializeToString()
  else:
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
      [classify.get_concrete_function()], module
    )
    content = _convert(converter, calibration if file_format == INT8 else None)
  with tf.io.gfile.GFile(path, "wb") as file:
    file.write(content)


def _convert(
  converter: tf.lite.TFLiteConverter, calibration: np.ndarray | None
) -> bytes:
  """Returns a TFLite file, in int8 if there are images to calibrate it."""
  if calibration is None:
    # Stores no zeros of pruned kernels; other networks are stored as ever.
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
  else:  # where positions take more room than zeros
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
      [image[None]] for image in calibration
    )
  return converter.convert()


def open_file(file_format: str, path: str) -> Call:
  """Opens a file of `write` as a function from images to logits.

  Args:
    file_format: one of `FILES`.
    path: of the file.
  """
  content = read_bytes(path)
  if file_format == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(
      content, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]
  interpreter = tf.lite.Interpreter(model_content=content)
  signature = interpreter.get_signature_runner()
  return lambda images: signature(images=images)["logits"]


class ModelOutputs(NamedTuple):
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


def run_and_time(
  name: str, call: Call, images: np.ndarray, num_bytes: int
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
  difference = np.abs(outputs.logits - reference.logits).max()
  difference /= np.abs(reference.logits).max()
  predicted, expected = (x.logits.argmax(-1) for x in (outputs, reference))
  parts = [
    f"largest difference {difference:.1e} of the largest logit, same class for"
    f" {np.sum(predicted == expected):,} of {len(expected):,} images"
  ]
  if labels is not None:
    parts.append(
      f"top-1 {np.mean(predicted == labels):.2%} (in training:"
      f" {np.mean(expected == labels):.2%})"
    )
  parts += [
    f"{outputs.num_bytes / 1e6:,.1f} MB (in training:"
    f" {reference.num_bytes / 1e6:,.1f})",
    f"{outputs.seconds * 1e3:,.1f} ms per image (in training:"
    f" {reference.seconds * 1e3:,.1f})",
  ]
  return f"{outputs.name}: {'; '.join(parts)}"


class ExportVerifier:
  """Compares exported forms of a network with the network on the same images.

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
    size = num_bytes(model.network.weights)
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
      file_format: one of `FILES`.
      folder: that gets the file.
      network: maps preprocessed images to (features, logits).
      module: owner of the network's variables.

    Raises:
      UserError: if there are too few images.
    """
    calibration, held_out = self._images, slice(None)
    if file_format == INT8:
      if len(self._images) < 2:
        raise UserError(
          f"the format {file_format!r} needs images for calibration and others"
          f" for the comparison, but {len(self._images)} was given; give more."
        )
      count = min(len(self._images) // 2, _MAX_CALIBRATION)
      calibration, held_out = self._images[:count], slice(count, None)
    name = FILES[file_format]
    path = os.path.join(folder, name)
    write(file_format, path, network, module, calibration)
    call, size = open_file(file_format, path), tf.io.gfile.stat(path).length
    outputs = run_and_time(name, call, self._images[held_out], size)
    reference = self._reference
    reference = reference._replace(logits=reference.logits[held_out])
    labels = None if self._labels is None else self._labels[held_out]
    return describe(outputs, reference, labels)
