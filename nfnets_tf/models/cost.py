"""Parameters, multiply-accumulates and activations of a network's graph.

A network built by `abstractly` has variables without values, so that the
largest can be measured on a laptop.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from nfnets_tf.keras_api import keras

_CONVOLUTIONS = ("Conv2D",)
_PRODUCTS = ("MatMul",)


def abstractly(build: Callable[[], keras.Model]) -> keras.Model:
  """Builds a network whose variables take no memory.

  The network can be measured and traced, not run.

  Args:
    build: returns the network, called without arguments.
  """
  nowhere = tf.Graph()  # its variables are symbolic: never initialized

  def create(next_creator, **kwargs):
    with nowhere.as_default():
      return next_creator(**kwargs)

  with tf.variable_creator_scope(create):
    return build()


def count_macs(network: keras.Model, image_size: int) -> int:
  """Counts the multiply-accumulates of one image's forward pass.

  Convolutions and matrix products count, as in the NFNet paper's "FLOPs"
  (table 3); sums, activations and the standardization of kernels do not.

  Args:
    network: takes [batch, image_size, image_size, 3].
    image_size: in pixels.
  """
  return sum(map(_macs, _forward_operations(network, image_size)))


def count_activations(network: keras.Model, image_size: int) -> int:
  """Counts the activations that one image's backward pass needs.

  Those are the inputs and outputs of convolutions; a compiler recomputes the
  rest. For F0 at 224 px these are 26.4 million.

  Args:
    network: takes [batch, image_size, image_size, 3].
    image_size: in pixels.
  """
  kept = {
    tensor.ref(): tensor.shape.num_elements()
    for operation in _forward_operations(network, image_size)
    if operation.type in _CONVOLUTIONS
    for tensor in (operation.inputs[0], operation.outputs[0])
  }
  return sum(kept.values())


@functools.lru_cache(maxsize=16)  # tracing the largest takes ten seconds
def _forward_operations(network, image_size) -> list[tf.Operation]:
  forward = tf.function(
    lambda images: network(images, training=False), autograph=False
  )
  images = tf.TensorSpec([1, image_size, image_size, 3], tf.float32)
  return forward.get_concrete_function(images).graph.get_operations()


def _macs(operation: tf.Operation) -> int:
  if operation.type not in _CONVOLUTIONS + _PRODUCTS:
    return 0
  # Every output element sums over the kernel's axes but the last.
  output, kernel = operation.outputs[0].shape, operation.inputs[1].shape
  return output.num_elements() * kernel[:-1].num_elements()


def count_parameters(network: keras.Model) -> tuple[int, int]:
  """Returns the numbers of trainable parameters of (body, classifier)."""
  total = sum(v.shape.num_elements() for v in network.trainable_variables)
  head = network.get_layer("classifier").trainable_variables
  in_head = sum(v.shape.num_elements() for v in head)
  return total - in_head, in_head
