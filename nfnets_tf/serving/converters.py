"""Converts a network to a single file for other runtimes: TFLite and ONNX.

The file takes preprocessed images, float32 [batch, size, size, 3] in [0, 255],
and returns logits and probabilities, float32 [batch, classes]: neither runtime
has the bicubic resize of the evaluation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes

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


def write(
  file_format: str,
  path: str,
  network: Callable[[tf.Tensor], tuple],
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

  def classify(images):
    _, logits = network(images)
    return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

  function = tf.function(classify, input_signature=[images], autograph=False)
  if file_format == "onnx":
    content = _to_onnx(function, images)
  else:
    content = _to_tflite(
      function, module, calibration if file_format == INT8 else None
    )
  with tf.io.gfile.GFile(path, "wb") as file:
    file.write(content)


def num_bytes(variables: Iterable[tf.Variable]) -> int:
  """Returns the size of variables in bytes."""
  return sum(v.dtype.size * v.shape.num_elements() for v in variables)


def _to_tflite(function, module, calibration) -> bytes:
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [function.get_concrete_function()], module
  )
  if calibration is not None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
      [image[None]] for image in calibration
    )
  return converter.convert()


def _to_onnx(function, images) -> bytes:
  import tf2onnx  # optional, and takes seconds to import

  model, _ = tf2onnx.convert.from_function(
    function, input_signature=[images], opset=_OPSET
  )
  return model.SerializeToString()


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
