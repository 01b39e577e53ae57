"""About how much memory a training step takes on a device."""

from __future__ import annotations

from typing import NamedTuple

from tensorflow import keras

from nfnets_tf.models import cost

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


def estimate_memory(job, network: keras.Model | None = None) -> Memory:
  """Estimates the memory of a step; makes no weights.

  Args:
    job: the `train.TrainJob`.
    network: its network, if there is one already.
  """
  network = network or cost.abstractly(job.network)
  size = job.train_split.image_shape()[0]
  parameters = sum(cost.count_parameters(network))
  # Whether there are averages only the classifier knows, which is not built.
  copies = 4 if job.sam is None else 6
  bytes_each = 2 if "16" in job.policy else _FLOAT32
  activations = cost.count_activations(network, size) * bytes_each
  return Memory(
    copies * _FLOAT32 * parameters, round(_OVER_CONVOLUTIONS * activations)
  )


def describe_memory(
  job, replicas: int | None = None, *, network: keras.Model | None = None
) -> str:
  """Returns the estimate in words.

  Args:
    job: the `train.TrainJob`.
    replicas: that share the batch; None if it is not known.
    network: its network, if there is one already.
  """
  fixed, an_image = estimate_memory(job, network)
  text = f"about {_size(fixed)} a device and {_size(an_image)} an image at a"
  text += f" time, compiled (on a CPU up to {_NOT_COMPILED} times as much an"
  text += " image)"
  if replicas is not None:
    share = job.batch_size // replicas
    text += f", {_size(fixed + share * an_image)} for the {share} images of"
    text += " each"
  return text


def _size(count: int) -> str:
  for unit, scale in (("GB", 1e9), ("MB", 1e6)):
    if count >= scale:
      return f"{count / scale:,.1f} {unit}"
  return f"{count / 1e3:,.1f} kB"
