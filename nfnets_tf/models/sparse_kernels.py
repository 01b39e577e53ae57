"""The kernels of a network that pruning makes sparse, and their zeros."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from nfnets_tf.keras_api import keras

if TYPE_CHECKING:
  from nfnets_tf.models.layers import WSConv2D

LOGGER = logging.getLogger("nfnets_tf")

_SHARE_OF_PRUNED = 0.01  # zeros of kernels; a dense network has none


def sparse_convolutions(network: tf.Module) -> list[WSConv2D]:
  """Returns the layers of a network whose kernels may be pruned."""
  return [layer for layer in _standardized(network) if layer.sparse]


def _standardized(network: tf.Module) -> list[WSConv2D]:
  return [x for x in network.submodules if hasattr(x, "standardized")]


def count_zeros(network: keras.Model) -> int:
  """Returns the number of entries that pruning has set to zero."""
  return sum(
    int(np.count_nonzero(layer.kernel.numpy() == 0))  # JSON takes no np.int64
    for layer in sparse_convolutions(network)
  )


def warn_of_zeros(network: keras.Model, path: str) -> None:
  """Warns where weights of a pruned network are loaded into a dense one."""
  dense = [layer for layer in _standardized(network) if not layer.sparse]
  kernels = [layer.kernel.numpy() for layer in dense]
  zeros = sum(np.sum(kernel == 0) for kernel in kernels)
  share = zeros / max(1, sum(kernel.size for kernel in kernels))
  if share > _SHARE_OF_PRUNED:
    LOGGER.warning(
      "%.0f %% of the kernels' weights in %r are zero, as of a pruned network,"
      " and this dense one standardizes zeros to other values; build it by"
      " NFNet(..., sparse='live') if they were trained so.",
      100 * share,
      path,
    )
