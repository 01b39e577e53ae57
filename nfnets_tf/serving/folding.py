"""Folds a trained NFNet into plain convolutions for a target device.

In training an NFNet standardizes its kernels at every call and multiplies by
gains, alpha, beta, gamma and skip gains. After training these are constants
that fold into the next kernel:

  conv(gamma * beta * f(x); W) = conv(f(x); gamma * beta * W)
  alpha * skip_gain * 2 * gate * (W h + b)
      = gate * (s W h + s b),  s = 2 * alpha * skip_gain

The gate of a block, sigmoid(E relu(R mean(W h + b) + r) + e), needs the mean of
the output of the last 1x1 convolution, which equals that convolution applied to
the mean of its input: R (W mean(h) + b) + r = (R W) mean(h) + (R b + r). R W
has half the entries of R. Branches with a skip gain of 0 are dropped.

All folding is computed in float64.

On a CPU TensorFlow runs the eight elementwise operations of a GELU one by one,
which takes longer than all convolutions in bfloat16. It does fuse a GELU that
follows a matrix product with a bias, through oneDNN. For CPUs, a 1x1
convolution that a GELU follows is therefore written as a matrix product, and
any other GELU is preceded by a product with a 16-channel identity matrix, which
is nearly free (docs/performance.md). For accelerators, TFLite and ONNX every
convolution stays a convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.layers import ALPHA, NFBlock, WSConv2D, spatial_mean
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import named_variables
from nfnets_tf.ops.activations import GAMMAS, plain_activation
from nfnets_tf.ops.convolution import conv2d
from nfnets_tf.train.classifier import Classifier

DTYPES = ("float32", "bfloat16")
TARGETS = ("cpu", "accelerator")

_IDENTITY = 16
# Grappler removes a bias of 0, and the fusion with it.
_TINY_BIAS = 1e-30


class FoldedNFNet(tf.Module):
  """Computes features and logits with folded kernels.

  Args:
    network: a trained `NFNet`; its weights do not change.
    dtype: of the computation, one of `DTYPES`; means, classifier and results
      are float32.
    target: device to write operations for, one of `TARGETS`.

  Attributes:
    parameters: kernels and biases, variables in the computation's dtype.

  Raises:
    UserError: if the network has no classifier.
  """

  def __init__(
    self, network: NFNet, *, dtype: str = "float32", target: str = "cpu"
  ):
    config = network.get_config()
    if not config["include_top"]:
      raise UserError(
        "the network has no classifier to export; build it with"
        " include_top=True."
      )
    super().__init__(name="network")
    self.parameters: list[tf.Variable] = []
    self._dtype = tf.as_dtype(dtype)
    activation = config["activation"]
    self._activate = plain_activation(activation)
    self._gamma = GAMMAS[activation]
    self._use_products = target == "cpu" and activation == "gelu"
    stem = [network.get_layer(f"stem_conv{i}") for i in range(4)]
    self._stem = [
      self._convolution(*_fold(layer, self._gamma if i else 1.0))
      for i, layer in enumerate(stem)
    ]
    self._blocks = [
      self._block(layer)
      for layer in network.layers
      if isinstance(layer, NFBlock)
    ]
    self._final_conv = self._activated_convolution(
      *_fold(network.get_layer("final_conv"))
    )
    head = network.get_layer("classifier")
    self._classify = self._product(head.kernel, head.bias, tf.float32)

  def __call__(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes features and logits.

    Args:
      images: normalized, float32 [batch, height, width, 3].

    Returns:
      features [batch, channels] and logits [batch, classes], float32.
    """
    outputs = tf.cast(images, self._dtype)
    for index, convolve in enumerate(self._stem):
      if index:
        outputs = self._activated(outputs)
      outputs = convolve(outputs)
    for block in self._blocks:
      outputs = block(outputs)
    features = self._gamma * spatial_mean(self._final_conv(outputs))
    return features, self._classify(features)

  def _variable(self, array, dtype: tf.DType) -> tf.Variable:
    array = tf.cast(np.asarray(array, np.float32), dtype)
    variable = tf.Variable(array, trainable=False)
    self.parameters.append(variable)
    return variable

  def _product(self, kernel, bias, dtype: tf.DType) -> Callable:
    kernel, bias = self._variable(kernel, dtype), self._variable(bias, dtype)
    return lambda inputs: tf.nn.bias_add(tf.matmul(inputs, kernel), bias)

  def _convolution(self, kernel, bias, strides: int) -> Callable:
    kernel = self._variable(kernel, self._dtype)
    bias = self._variable(bias, self._dtype)

    def convolve(inputs):
      groups = inputs.shape[-1] // kernel.shape[2]
      outputs = conv2d(inputs, kernel, strides=strides, groups=groups)
      # With oneDNN off, TensorFlow would fuse a bias into a grouped convolution
      # too, and it has no kernel for that.
      return outputs + bias if groups > 1 else tf.nn.bias_add(outputs, bias)

    return convolve

  def _activated_convolution(self, kernel, bias, strides: int) -> Callable:
    """Returns a convolution followed by the activation."""
    height, width, fan_in, channels = kernel.shape
    if not self._use_products or (height, width) != (1, 1):
      convolve = self._convolution(kernel, bias, strides)
      return lambda inputs: self._activated(convolve(inputs))
    multiply = self._product(kernel[0, 0], bias, self._dtype)

    def convolve_pixels(inputs):
      outputs = multiply(tf.reshape(inputs, [-1, fan_in]))
      shape = tf.concat([tf.shape(inputs)[:3], [channels]], axis=0)
      return tf.reshape(self._activate(outputs), shape)

    return convolve_pixels

  def _activated(self, inputs):
    """Applies the activation to [batch, height, width, channels]."""
    if not self._use_products or inputs.shape[-1] % _IDENTITY:
      return self._activate(inputs)
    identity = tf.constant(np.eye(_IDENTITY), self._dtype)
    bias = tf.constant([_TINY_BIAS] * _IDENTITY, self._dtype)
    product = tf.matmul(tf.reshape(inputs, [-1, _IDENTITY]), identity)
    outputs = self._activate(tf.nn.bias_add(product, bias))
    return tf.reshape(outputs, tf.shape(inputs))

  def _block(self, block: NFBlock) -> Callable:
    entry = self._gamma * block.beta
    scale = 2.0 * ALPHA * float(block.skip_gain.numpy())
    shortcut = self._shortcut(block, entry) if block.conv_shortcut else None
    branch = self._branch(block, entry, scale) if scale else None

    def call(inputs):
      if shortcut is None and branch is None:
        return inputs
      out = self._activated(inputs)
      outputs = inputs if shortcut is None else shortcut(out)
      return outputs if branch is None else branch(out) + outputs

    return call

  def _shortcut(self, block: NFBlock, entry: float) -> Callable:
    """Returns average pooling by the strides, then a 1x1 projection."""
    project = self._convolution(*_fold(block.conv_shortcut, entry))
    strides = block.strides

    def call(out):
      if strides > 1:
        # SAME average pooling divides by the number of pixels inside the image.
        out = tf.nn.avg_pool2d(out, 2, strides, "SAME")
      return project(out)

    return call

  def _branch(self, block: NFBlock, entry: float, scale: float) -> Callable:
    convolutions = [
      self._activated_convolution(*_fold(layer, before))
      for layer, before in (
        (block.conv0, entry),
        (block.conv1, self._gamma),
        (block.conv1b, self._gamma),
      )
    ]
    last = self._convolution(*_fold(block.conv2, self._gamma, scale))
    gate = self._gate(block)

    def call(out):
      for convolve in convolutions:
        out = convolve(out)
      return last(out) * gate(out)

    return call

  def _gate(self, block: NFBlock) -> Callable:
    kernel, bias, _ = _fold(block.conv2, self._gamma)
    excite = block.squeeze_excite
    weights = _double(excite.reduce.kernel)
    reduce = self._product(
      kernel[0, 0] @ weights,
      bias @ weights + _double(excite.reduce.bias),
      self._dtype,
    )
    expand = self._product(
      excite.expand.kernel, excite.expand.bias, self._dtype
    )

    def call(out):
      mean = tf.cast(spatial_mean(out), self._dtype)
      gate = tf.sigmoid(expand(tf.nn.relu(reduce(mean))))
      return tf.reshape(gate, [-1, 1, 1, bias.size])

    return call


def _fold(
  layer: WSConv2D, before: float = 1.0, after: float = 1.0
) -> tuple[np.ndarray, np.ndarray, int]:
  """Folds scales of a convolution's input and output into it.

  Returns:
    kernel, float64 [height, width, in / groups, out], bias, float64 [out], and
    strides.
  """
  kernel = layer.standardized(tf.float64)
  bias = after * _double(layer.bias)
  return before * after * kernel.numpy(), bias, layer.strides


def _double(variable: tf.Variable) -> np.ndarray:
  return variable.numpy().astype(np.float64)


def inference_network(
  model: Classifier, *, fold: bool, dtype: str, target: str
) -> tuple[Callable[[tf.Tensor], tuple], dict]:
  """Returns a function from images in [0, 255] to (features, logits).

  Args:
    model: provides the network and the normalization of images.
    fold: whether to fold the network if it is an `NFNet`; otherwise it runs as
      in training.
    dtype: of a folded network; see `FoldedNFNet`.
    target: of a folded network.

  Returns:
    The function, and {name: variables that it uses}.

  Raises:
    UserError: if a network other than an `NFNet` is requested in bfloat16.
  """
  is_nfnet = isinstance(model.network, NFNet)
  if not is_nfnet and dtype != "float32":
    raise UserError(
      f"dtype = {dtype!r} was given for a {type(model.network).__name__};"
      " expected an NFNet, or dtype='float32' for other networks."
    )
  if not fold or not is_nfnet:
    named = named_variables(model.network)
    return training_network(model), {"parameters": named}
  folded = FoldedNFNet(model.network, dtype=dtype, target=target)
  return (
    lambda images: folded(model.normalize(images)),
    {"folded": folded.parameters},
  )


def training_network(model: Classifier) -> Callable[[tf.Tensor], tuple]:
  """Returns the unfolded function from images to (features, logits).

  It maps float32 images [batch, height, width, 3] in [0, 255] to features
  [batch, channels], None unless the network is an `NFNet`, and logits [batch,
  classes].
  """
  network = model.network
  if not isinstance(network, NFNet):
    return lambda images: (None, model(images, training=False))
  both = keras.Model(
    network.inputs, [network.get_layer("pool").output, *network.outputs]
  )
  return lambda images: tuple(both(model.normalize(images), training=False))
