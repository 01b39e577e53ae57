"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as DeepMind applies it."""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from nfnets_tf.data import color, geometry
from nfnets_tf.data.preprocess import decode
from nfnets_tf.errors import UserError

# DeepMind's list, in its order.
OPERATIONS = (
  "auto_contrast",
  "equalize",
  "invert",
  "rotate",
  "posterize",
  "solarize",
  "color",
  "contrast",
  "brightness",
  "sharpness",
  "shear_x",
  "shear_y",
  "translate_x",
  "translate_y",
  "cut_out",
  "solarize_add",
)


class RandAugment:
  """Applies `layers` operations, each drawn evenly from `operations`.

  The image becomes uint8 and keeps its size. How strong an operation is follows
  from `magnitude`; the direction of a move and a place to cut out are drawn.

  Args:
    layers: operations an image goes through.
    magnitude: strength of all of them; 10 is the scale of the arguments below,
      and the NFNet paper goes to 15.
    operations: names out of `OPERATIONS`, and "identity".
    translation: pixels of a move at magnitude 10.
    cut_out: half the side of a cut-out, in pixels, at magnitude 10.

  Raises:
    UserError: if an argument cannot be used.
  """

  def __init__(
    self,
    *,
    layers: int,
    magnitude: float,
    operations: Sequence[str] = OPERATIONS,
    translation: float = 100.0,
    cut_out: float = 40.0,
  ):
    known = _build(0.0, 0.0, 0.0)
    unknown = [name for name in operations if name not in known]
    if unknown or not operations:
      raise UserError(
        f"RandAugment.operations holds {unknown}; expected names out of"
        f" {', '.join(known)}."
      )
    if not 0 <= magnitude <= 20:
      raise UserError(
        f"RandAugment.magnitude = {magnitude!r} cannot be used; bind it to a"
        " number from 0 to 20."
      )
    if not isinstance(layers, int) or layers < 0:
      raise UserError(
        f"RandAugment.layers = {layers!r} cannot be used; bind it to a whole"
        " number of at least 0."
      )
    self.layers = layers
    self.magnitude = magnitude
    self.operations = tuple(operations)
    self.translation = translation
    self.cut_out = cut_out
    table = _build(magnitude / 10, translation, cut_out)
    self._functions = [table[name] for name in self.operations]

  def __call__(self, image, seed):
    image = decode(image)
    for choice, draws in self.draw(seed):
      image = self.apply(image, choice, draws)
    return image

  def draw(self, seed: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Returns, for each layer, what is drawn.

    Args:
      seed: int64 [2].

    Returns:
      Pairs of a position in `operations` and float32 [2] in [0, 1), from which
      the operation takes its direction or its place.
    """
    if not self.layers:
      return []
    numbers = tf.random.stateless_uniform([self.layers, 3], seed, alg="philox")
    count = len(self.operations)
    choices = tf.cast(numbers[:, 0] * count, tf.int32)
    choices = tf.minimum(choices, count - 1)  # for a product that rounds up
    return list(zip(tf.unstack(choices), tf.unstack(numbers[:, 1:])))

  def apply(
    self, image: tf.Tensor, choice: tf.Tensor, draws: tf.Tensor
  ) -> tf.Tensor:
    """Applies one operation to uint8 [height, width, 3]; see `draw`."""
    shape = image.shape
    branches = [
      lambda function=function: function(image, draws)
      for function in self._functions
    ]
    return tf.ensure_shape(tf.switch_case(choice, branches), shape)


def _build(
  share: float, translation: float, half: float
) -> Mapping[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
  """Returns every operation at `share` of its greatest strength."""
  blend = 1.8 * share + 0.1
  half = int(share * half)
  move = share * translation
  move = int(move) if float(move).is_integer() else move

  def signed(value, draws):
    return tf.where(draws[0] < 0.5, -value, value)

  def cut_out(image, draws):
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    row, column = tf.unstack(tf.cast(draws * shape, tf.int32))
    return geometry.cut_out(image, row, column, half)

  return {
    "auto_contrast": lambda x, _: color.auto_contrast(x),
    "equalize": lambda x, _: color.equalize(x),
    "invert": lambda x, _: color.invert(x),
    "rotate": lambda x, d: geometry.rotate(x, signed(30.0 * share, d)),
    "posterize": lambda x, _: color.posterize(x, int(share * 4)),
    "solarize": lambda x, _: color.solarize(x, int(share * 256)),
    "color": lambda x, _: color.color(x, blend),
    "contrast": lambda x, _: color.contrast(x, blend),
    "brightness": lambda x, _: color.brightness(x, blend),
    "sharpness": lambda x, _: color.sharpness(x, blend),
    "shear_x": lambda x, d: geometry.shear_x(x, signed(0.3 * share, d)),
    "shear_y": lambda x, d: geometry.shear_y(x, signed(0.3 * share, d)),
    "translate_x": lambda x, d: geometry.translate_x(x, signed(move, d)),
    "translate_y": lambda x, d: geometry.translate_y(x, signed(move, d)),
    "cut_out": cut_out,
    "solarize_add": lambda x, _: color.solarize_add(x, int(share * 110)),
    "identity": lambda x, _: tf.identity(x),
  }
