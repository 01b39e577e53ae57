"""Folds a trained NFNet into plain convolutions with bias.

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
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.layers import SqueezeExcite, WSConv2D
from nfnets_tf.models.nfnet import ALPHA, NFBlock, NFNet
from nfnets_tf.ops.activations import GAMMAS
from nfnets_tf.ops.weight_standardization import standardize


@dataclasses.dataclass(frozen=True)
class Affine:
  """A plain convolution or, for a kernel of rank 2, a matrix product.

  Attributes:
    kernel: float32 [height, width, in / groups, out] or [in, out].
    bias: float32 [out].
    strides: of a convolution with SAME padding.
  """

  kernel: np.ndarray
  bias: np.ndarray
  strides: int = 1

  @property
  def num_bytes(self) -> int:
    """Size of kernel and bias in bytes, float32."""
    return self.kernel.nbytes + self.bias.nbytes


@dataclasses.dataclass(frozen=True)
class FoldedBlock:
  """A residual block: y = shortcut(f(x)) + gate(h) * last(h), h = branch(f(x)).

  Attributes:
    shortcut: 1x1, after average pooling by its `strides`; None for identity.
    branch: three convolutions, each followed by f; empty if the skip gain is 0.
    last: 1x1; None if the skip gain is 0.
    gate: two products, applied to the mean of h.
  """

  shortcut: Affine | None
  branch: tuple[Affine, ...]
  last: Affine | None
  gate: tuple[Affine, ...]


@dataclasses.dataclass(frozen=True)
class FoldedNFNet:
  """The constants of a trained network.

  Attributes:
    activation: name of f, the unscaled nonlinearity; gamma is in the kernels.
    stem: four convolutions, f between them.
    blocks: in the order of the data.
    final_conv: 1x1, before the last f.
    feature_scale: gamma, which multiplies the pooled features.
    classifier: product applied to the features.
  """

  activation: str
  stem: tuple[Affine, ...]
  blocks: tuple[FoldedBlock, ...]
  final_conv: Affine
  feature_scale: float
  classifier: Affine

  @property
  def num_bytes(self) -> int:
    """Size of all kernels and biases in bytes, float32."""
    return sum(affine.num_bytes for affine in _affines(self))


def fold(network: keras.Model) -> FoldedNFNet:
  """Folds an NFNet with its top; does not change its weights.

  Args:
    network: an `NFNet`.

  Raises:
    UserError: if it is not an NFNet or has no classifier.
  """
  if not isinstance(network, NFNet):
    raise UserError(
      f"a {type(network).__name__} was given to fold; expected an NFNet, or"
      " fold=False for other networks."
    )
  config = network.get_config()
  if not config["include_top"]:
    raise UserError(
      "the network has no classifier to export; build it with include_top=True."
    )
  gamma = GAMMAS[config["activation"]]
  stem = [network.get_layer(f"stem_conv{i}") for i in range(4)]
  head = network.get_layer("classifier")
  return FoldedNFNet(
    activation=config["activation"],
    stem=tuple(_plain(c, gamma if i else 1.0) for i, c in enumerate(stem)),
    blocks=tuple(
      _fold_block(layer, gamma)
      for layer in network.layers
      if isinstance(layer, NFBlock)
    ),
    final_conv=_plain(network.get_layer("final_conv")),
    feature_scale=gamma,
    classifier=_affine(head.kernel, head.bias),
  )


def _fold_block(block: NFBlock, gamma: float) -> FoldedBlock:
  entry = gamma * block.beta
  shortcut = None
  if block.conv_shortcut is not None:
    projection = _plain(block.conv_shortcut, entry)
    shortcut = dataclasses.replace(projection, strides=block.strides)
  scale = 2.0 * ALPHA * float(block.skip_gain.numpy())
  if not scale:
    return FoldedBlock(shortcut, branch=(), last=None, gate=())
  return FoldedBlock(
    shortcut,
    branch=(
      _plain(block.conv0, entry),
      _plain(block.conv1, gamma),
      _plain(block.conv1b, gamma),
    ),
    last=_plain(block.conv2, gamma, scale),
    gate=_fold_gate(block.squeeze_excite, block.conv2, gamma),
  )


def _fold_gate(
  excite: SqueezeExcite, last: WSConv2D, gamma: float
) -> tuple[Affine, Affine]:
  kernel, bias = _standardized(last)
  reduce = _double(excite.reduce.kernel)
  expand = excite.expand
  return (
    _affine(
      gamma * kernel[0, 0] @ reduce,
      bias @ reduce + _double(excite.reduce.bias),
    ),
    _affine(expand.kernel, expand.bias),
  )


def _plain(layer: WSConv2D, before: float = 1.0, after: float = 1.0) -> Affine:
  """Folds a convolution with scales on its input and output."""
  kernel, bias = _standardized(layer)
  return _affine(before * after * kernel, after * bias, layer.strides)


def _standardized(layer: WSConv2D) -> tuple[np.ndarray, np.ndarray]:
  kernel = standardize(
    tf.constant(_double(layer.kernel)), tf.constant(_double(layer.gain))
  )
  return kernel.numpy(), _double(layer.bias)


def _double(variable: tf.Variable) -> np.ndarray:
  return variable.numpy().astype(np.float64)


def _affine(kernel, bias, strides: int = 1) -> Affine:
  return Affine(
    np.asarray(kernel, np.float32), np.asarray(bias, np.float32), strides
  )


def _affines(folded: FoldedNFNet):
  yield from folded.stem
  for block in folded.blocks:
    yield from block.branch
    yield from block.gate
    for affine in (block.shortcut, block.last):
      if affine is not None:
        yield affine
  yield folded.final_conv
  yield folded.classifier
