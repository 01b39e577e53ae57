"""Sizes of NFNets: F0 to F7, the wider F0+ to F7+, and small ones for laptops.

Depths, widths and head dropout of F0 to F6 are Brock et al. 2021, table 1; F7
and the "+" family are those of the released code. `nfnet.NFNet` builds them.
"""

import dataclasses
import difflib

from nfnets_tf.errors import UserError
from nfnets_tf.ranges import accepts, one_of


@dataclasses.dataclass(frozen=True)
class Variant:
  """One size of NFNet.

  Attributes:
    depths: number of residual blocks in each of the four stages.
    drop_rate: default rate of the dropout before the classifier.
    widths: output channels of each stage.
    group_width: channels in each group of the 3x3 convolutions.
    stem_widths: channels of the first three stem convolutions; the fourth has
      half of `widths[0]`.
    stem_strides: of the four stem convolutions.
  """

  depths: tuple[int, ...]
  drop_rate: float
  widths: tuple[int, ...] = (256, 512, 1536, 1536)
  group_width: int = 128
  stem_widths: tuple[int, ...] = (16, 32, 64)
  stem_strides: tuple[int, ...] = (2, 1, 1, 2)


_PUBLISHED = {
  "F0": Variant((1, 2, 6, 3), 0.2),
  "F1": Variant((2, 4, 12, 6), 0.3),
  "F2": Variant((3, 6, 18, 9), 0.4),
  "F3": Variant((4, 8, 24, 12), 0.4),
  "F4": Variant((5, 10, 30, 15), 0.5),
  "F5": Variant((6, 12, 36, 18), 0.5),
  "F6": Variant((7, 14, 42, 21), 0.5),
  "F7": Variant((8, 16, 48, 24), 0.5),
}

_WIDER = {
  f"{name}+": dataclasses.replace(variant, widths=(384, 768, 2048, 2048))
  for name, variant in _PUBLISHED.items()
}

# Not published: laptop sizes, for tests and small images.
_SMALL = {
  "femto": Variant((1, 1, 1, 1), 0.0, (16, 16, 32, 32), 4, (8, 8, 8)),
  "nano": Variant((1, 1, 2, 1), 0.0, (32, 64, 128, 128), 16, (8, 16, 32)),
  "micro": Variant(
    (1, 2, 3, 1),
    0.0,
    (96, 192, 384, 384),
    64,
    stem_strides=(2, 1, 1, 1),  # for images of 32 pixels and more
  ),
  "pico": Variant(
    (1, 2, 2, 1),
    0.0,
    (64, 128, 256, 384),
    32,
    stem_widths=(8, 16, 16),
    stem_strides=(1, 1, 1, 1),  # for images of 32 pixels, kept whole
  ),
}

# Not published: a ladder for scaling studies on images of 32 pixels, named by
# the width of stage 1. Each rung doubles all widths: about four times the MACs.
_LADDER = {
  f"W{width}": Variant(
    (1, 1, 2, 1),
    0.0,
    (width, 2 * width, 4 * width, 4 * width),
    max(4, width // 4),
    (width // 4, width // 4, width // 2),
    (2, 1, 1, 1),
  )
  for width in (8, 16, 32, 64)
}

BOTTLENECK_RULE = one_of("released", "published")

VARIANTS = {**_PUBLISHED, **_WIDER, **_SMALL, **_LADDER}


def variant(name: str) -> Variant:
  """Returns the size called `name`.

  Raises:
    UserError: if it does not exist; the message suggests the nearest name.
  """
  if isinstance(name, str) and name in VARIANTS:
    return VARIANTS[name]
  # Of equally near ones max returns the first, a published one.
  near = max(VARIANTS, key=lambda known: _likeness(str(name), known))
  alike = _likeness(str(name), near) >= 0.4
  hint = f" (did you mean {near!r}?)" if alike else ""
  raise UserError(
    f"NFNet variant {name!r} does not exist; expected one of"
    f" {', '.join(VARIANTS)}{hint}."
  )


def _likeness(name: str, known: str) -> float:
  return difflib.SequenceMatcher(None, name, known).ratio()


@accepts(rule=BOTTLENECK_RULE)
def bottleneck_shape(
  width: int, group_width: int, rule: str
) -> tuple[int, int]:
  """Returns (channels, groups) of a stage's 3x3 convolutions.

  Args:
    width: output channels of the stage; the bottleneck is half of them.
    group_width: channels of a group.
    rule: "released" or "published"; see `nfnet.NFNet`.
  """
  bottleneck = width // 2
  groups = max(1, bottleneck // group_width)
  return (groups * group_width if rule == "released" else bottleneck), groups
