"""A network as one file for other runtimes: TFLite and ONNX.

Such a file takes images as the evaluation's operations leave them, float32
[batch, size, size, 3] in [0, 255], and gives logits and probabilities, float32
[batch, classes]: neither runtime has the evaluation's bicubic resize.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.fileio import read_bytes

INT8 = "tflite_int8"
# By format: the file's name.
FILES = {
  "tflite": "model.tflite",
  INT8: "model_int8.tflite",
  "onnx": "model.onnx",
}
# Both are built on buffers that count in 32 bits with a sign.
_MAX_BYTES = (1 << 31) - 1
_OPSET = 17

Ask = Callable[[np.ndarray], np.ndarray]


def check_formats(names: Sequence[str]) -> None:
  """Checks that formats are known and that what writes them is installed.

  Raises:
    UserError: if not.
  """
  if not isinstance(names, (list, tuple)) or not set(names) <= set(FILES):
    raise UserError(
      f"formats = {names!r} cannot be written; expected a list of some of"
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
      " installed; run pip install 'nfnets_tf[onnx]', or leave the format out."
    )


def write(
  name: str,
  path: str,
  network: Callable[[tf.Tensor], tuple],
  module: tf.Module,
  calibration: np.ndarray,
) -> None:
  """Writes a network in a format of `FILES`.

  Args:
    name: of the format.
    path: of the file.
    network: maps prepared images to (features, logits).
    module: that the network's variables belong to.
    calibration: prepared images, float32 [images, size, size, 3]; int8 takes
      its ranges from them, the others their size.

  Raises:
    UserError: if the weights are larger than the format admits.
  """
  size = num_bytes(module.variables)
  if size > _MAX_BYTES:
    raise UserError(
      f"weights of {size / 1e9:.1f} GB do not fit into a {name} file, which"
      " holds 2 GB; leave the format out."
    )
  images = tf.TensorSpec([None, *calibration.shape[1:]], tf.float32, "images")

  def answer(images):
    _, logits = network(images)
    return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

  function = tf.function(answer, input_signature=[images], autograph=False)
  if name == "onnx":
    content = _to_onnx(function, images)
  else:
    content = _to_tflite(
      function, module, calibration if name == INT8 else None
    )
  with tf.io.gfile.GFile(path, "wb") as file:
    file.write(content)


def num_bytes(variables: Iterable[tf.Variable]) -> int:
  """Returns how many bytes variables take."""
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
  import tf2onnx  # only for this format, and seconds to import

  model, _ = tf2onnx.convert.from_function(
    function, input_signature=[images], opset=_OPSET
  )
  return model.SerializeToString()


def open_file(name: str, path: str) -> Ask:
  """Opens a file that `write` wrote; returns what maps images to logits.

  Args:
    name: of the format.
    path: of the file.
  """
  content = read_bytes(path)
  if name == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(
      content, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]
  interpreter = tf.lite.Interpreter(model_content=content)
  signature = interpreter.get_signature_runner()
  return lambda images: signature(images=images)["logits"]
