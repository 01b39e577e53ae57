"""Runs a folded NFNet, with operations chosen for the target device.

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
from nfnets_tf.models.layers import spatial_mean
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.weights import named_variables
from nfnets_tf.ops.activations import plain_activation
from nfnets_tf.ops.convolution import conv2d
from nfnets_tf.serving import folding
from nfnets_tf.serving.folding import Affine, FoldedBlock, FoldedNFNet
from nfnets_tf.train.classifier import Classifier

DTYPES = ("float32", "bfloat16")
TARGETS = ("cpu", "accelerator")

_IDENTITY = 16
# Grappler removes a bias of 0, and the fusion with it.
_TINY_BIAS = 1e-30


class FoldedInference(tf.Module):
  """Computes features and logits with a folded network.

  Args:
    folded: the network.
    dtype: of the computation, one of `DTYPES`; means, classifier and results
      are float32.
    target: device to write operations for, one of `TARGETS`.

  Attributes:
    parameters: kernels and biases, variables in the computation's dtype.
  """

  def __init__(
    self, folded: FoldedNFNet, *, dtype: str = "float32", target: str = "cpu"
  ):
    super().__init__(name="network")
    self.parameters: list[tf.Variable] = []
    self._dtype = tf.as_dtype(dtype)
    self._activate = plain_activation(folded.activation)
    self._use_products = target == "cpu" and folded.activation == "gelu"
    self._stem = [self._convolution(affine) for affine in folded.stem]
    self._blocks = [self._block(block) for block in folded.blocks]
    self._final_conv = self._activated_convolution(folded.final_conv)
    self._feature_scale = folded.feature_scale
    self._classify = self._product(folded.classifier, tf.float32)

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
    outputs = spatial_mean(self._final_conv(outputs))
    features = self._feature_scale * outputs
    return features, self._classify(features)

  def _variable(self, array: np.ndarray, dtype: tf.DType) -> tf.Variable:
    variable = tf.Variable(tf.cast(array, dtype), trainable=False)
    self.parameters.append(variable)
    return variable

  def _product(self, affine: Affine, dtype: tf.DType) -> Callable:
    kernel = self._variable(affine.kernel, dtype)
    bias = self._variable(affine.bias, dtype)
    return lambda inputs: tf.nn.bias_add(tf.matmul(inputs, kernel), bias)

  def _convolution(self, affine: Affine) -> Callable:
    kernel = self._variable(affine.kernel, self._dtype)
    bias = self._variable(affine.bias, self._dtype)

    def convolve(inputs):
      groups = inputs.shape[-1] // kernel.shape[2]
      outputs = conv2d(inputs, kernel, strides=affine.strides, groups=groups)
      # With oneDNN off, TensorFlow would fuse a bias into a grouped convolution
      # too, and it has no kernel for that.
      return outputs + bias if groups > 1 else tf.nn.bias_add(outputs, bias)

    return convolve

  def _activated_convolution(self, affine: Affine) -> Callable:
    """Returns a convolution followed by the activation."""
    height, width, fan_in, channels = affine.kernel.shape
    if not self._use_products or (height, width) != (1, 1):
      convolve = self._convolution(affine)
      return lambda inputs: self._activated(convolve(inputs))
    pixels = Affine(affine.kernel[0, 0], affine.bias)
    multiply = self._product(pixels, self._dtype)

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

  def _block(self, block: FoldedBlock) -> Callable:
    shortcut = self._shortcut(block.shortcut) if block.shortcut else None
    branch = self._branch(block) if block.last else None

    def call(inputs):
      if shortcut is None and branch is None:
        return inputs
      out = self._activated(inputs)
      outputs = inputs if shortcut is None else shortcut(out)
      return outputs if branch is None else branch(out) + outputs

    return call

  def _branch(self, block: FoldedBlock) -> Callable:
    convolutions = [
      self._activated_convolution(affine) for affine in block.branch
    ]
    last = self._convolution(block.last)
    reduce, expand = (
      self._product(affine, self._dtype) for affine in block.gate
    )
    channels = block.last.bias.size

    def call(out):
      for convolve in convolutions:
        out = convolve(out)
      mean = tf.cast(spatial_mean(out), self._dtype)
      gate = tf.sigmoid(expand(tf.nn.relu(reduce(mean))))
      return last(out) * tf.reshape(gate, [-1, 1, 1, channels])

    return call

  def _shortcut(self, affine: Affine) -> Callable:
    """Returns average pooling by the strides, then a 1x1 projection."""
    project = self._convolution(Affine(affine.kernel, affine.bias))

    def call(out):
      if affine.strides > 1:
        # SAME average pooling divides by the number of pixels inside the image.
        out = tf.nn.avg_pool2d(out, 2, affine.strides, "SAME")
      return project(out)

    return call


def inference_network(
  model: Classifier, *, fold: bool, dtype: str, target: str
) -> tuple[Callable[[tf.Tensor], tuple], dict]:
  """Returns a function from images in [0, 255] to (features, logits).

  Args:
    model: provides the network and the normalization of images.
    fold: whether to fold the network if it is an `NFNet`; otherwise it runs as
      in training.
    dtype: of a folded network; see `FoldedInference`.
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
  folded = folding.fold(model.network)
  inference = FoldedInference(folded, dtype=dtype, target=target)
  return (
    lambda images: inference(model.normalize(images)),
    {"folded": inference.parameters},
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
