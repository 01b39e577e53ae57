"""Fine-tuning by part of the network: what is frozen, what learns slowly."""

from __future__ import annotations

from collections.abc import Sequence

from tensorflow import keras

from nfnets_tf.errors import UserError
from nfnets_tf.models.parts import HEAD, layers_by_part, variables_by_part
from nfnets_tf.ops.roles import mark_rate

_FROZEN_HERE = "_frozen_by_classifier"


def prepare(
  network: keras.Model, *, frozen: Sequence[str] | str, layer_decay: float
) -> None:
  """Freezes parts of a network and marks the rates of all; see below."""
  freeze(network, frozen)
  mark_rates(network, layer_decay)


def freeze(network: keras.Model, frozen: Sequence[str] | str) -> None:
  """Makes parts of an `NFNet` untrainable.

  What an earlier call froze learns again unless it is named; what a user froze
  by `layer.trainable = False` stays frozen.

  Args:
    network: an `NFNet`, unless nothing is frozen.
    frozen: names of parts, or "backbone", which is all but the classifier.

  Raises:
    UserError: if the network has no such part, or nothing would learn.
  """
  parts = layers_by_part(network)
  for layer in [layer for members in parts.values() for layer in members]:
    if getattr(layer, _FROZEN_HERE, False):
      layer.trainable = True
      setattr(layer, _FROZEN_HERE, False)
  if not frozen:
    return
  if frozen == "backbone":
    frozen = [name for name in parts if name != HEAD]
  names = [frozen] if isinstance(frozen, str) else list(frozen)
  if unknown := [name for name in names if name not in parts]:
    known = ", ".join(map(repr, (*parts, "backbone")))
    raise UserError(
      f"Classifier.frozen names {unknown[0]!r}, which the network has not;"
      + (
        f" expected some of {known}."
        if parts
        else " expected an NFNet: set layer.trainable = False in another model."
      )
    )
  if set(parts) <= set(names):
    raise UserError(
      "Classifier.frozen names every part of the network, so nothing would"
      " learn; leave one out."
    )
  for name in names:
    for layer in parts[name]:
      if layer.trainable:
        layer.trainable = False
        setattr(layer, _FROZEN_HERE, True)


def mark_rates(network: keras.Model, layer_decay: float) -> None:
  """Gives each part of an `NFNet` its share of the learning rate.

  The head learns at the full rate, the part before it at `layer_decay` times
  that, and so on to the stem, at `layer_decay` to the 6th.

  Raises:
    UserError: if the decay is not in (0, 1], or the network has no parts.
  """
  if not 0 < layer_decay <= 1:
    raise UserError(
      f"Classifier.layer_decay = {layer_decay} cannot be used; bind it to a"
      " factor above 0 and up to 1."
    )
  parts = variables_by_part(network)
  if layer_decay != 1 and not parts:
    raise UserError(
      f"Classifier.layer_decay = {layer_decay} needs an NFNet, whose parts are"
      " known; mark other variables with ops.roles.mark_rate."
    )
  for distance, variables in enumerate(reversed(parts.values())):
    for variable in variables:
      mark_rate(variable, layer_decay**distance)
