"""About how much memory a training step takes on a device."""

from __future__ import annotations

from typing import NamedTuple

from tensorflow import keras

from nfnets_tf.models import cost
from nfnets_tf.optim.sam import SAM

_FLOAT32 = 4
# An F0 at 224 px in bfloat16, compiled for a TPU v4 without running it, takes
# 61 MB an image, against 53 by its convolutions. On a CPU nothing is remade:
# a process that trains F0 at 128 px grew by 2.2 (bfloat16) to 2.9 times that.
_OVER_CONVOLUTIONS = 1.15
_NOT_COMPILED = 3


class Memory(NamedTuple):
  """Bytes on a device.

  Attributes:
    fixed: of weights, gradients, momentum and averages, and SAM's copies.
    an_image: for each image that is computed at a time.
  """

  fixed: int
  an_image: int


def estimate_memory(
  network: keras.Model, *, image_size: int, sam: SAM | None, policy: str
) -> Memory:
  """Estimates the memory of a training step; makes no weights.

  Args:
    network: may be one without weights, of `cost.abstractly`.
    image_size: height and width of training's images, in pixels.
    sam: of the training step, or None.
    policy: Keras' precision policy.
  """
  parameters = sum(cost.count_parameters(network))
  # Whether there are averages only the classifier knows, which is not built.
  copies = 4 if sam is None else 6
  bytes_each = 2 if "16" in policy else _FLOAT32
  activations = cost.count_activations(network, image_size) * bytes_each
  return Memory(
    copies * _FLOAT32 * parameters, round(_OVER_CONVOLUTIONS * activations)
  )


def describe_memory(memory: Memory, replica_batch: int | None = None) -> str:
  """Returns an estimate in words.

  Args:
    memory: the estimate.
    replica_batch: images of one device; None if it is not known.
  """
  fixed, an_image = memory
  text = f"about {_size(fixed)} a device and {_size(an_image)} an image at a"
  text += f" time, compiled (on a CPU up to {_NOT_COMPILED} times as much an"
  text += " image)"
  if replica_batch is not None:
    total = _size(fixed + replica_batch * an_image)
    text += f", {total} for the {replica_batch} images of each"
  return text


def _size(count: int) -> str:
  for unit, scale in (("GB", 1e9), ("MB", 1e6)):
    if count >= scale:
      return f"{count / scale:,.1f} {unit}"
  return f"{count / 1e3:,.1f} kB"
