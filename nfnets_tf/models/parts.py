"""The parts of an NFNet, for what is done by part: freezing, rates, reports."""

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models import variants
from nfnets_tf.models.block import NFBlock
from nfnets_tf.models.nfnet import NFNet

HEAD = "classifier"


def layers_by_part(network: keras.Model) -> dict[str, list[keras.layers.Layer]]:
  """Returns the layers with weights of an `NFNet`, {} of another network.

  The parts are stem, stage1 to stage4, final_conv and, with the top,
  classifier, in the order of the data.
  """
  if not isinstance(network, NFNet):
    return {}
  config = network.get_config()
  blocks = [layer for layer in network.layers if isinstance(layer, NFBlock)]
  parts = {"stem": [network.get_layer(f"stem_conv{i}") for i in range(4)]}
  depths = variants.variant(config["variant"]).depths
  for stage, depth in enumerate(depths, start=1):
    parts[f"stage{stage}"], blocks = blocks[:depth], blocks[depth:]
  parts["final_conv"] = [network.get_layer("final_conv")]
  if config["include_top"]:
    parts[HEAD] = [network.get_layer(HEAD)]
  return parts


def variables_by_part(network: keras.Model) -> dict[str, list[tf.Variable]]:
  """Returns {part: its variables}; see `layers_by_part`."""
  return {
    name: [variable for layer in layers for variable in layer.variables]
    for name, layers in layers_by_part(network).items()
  }
