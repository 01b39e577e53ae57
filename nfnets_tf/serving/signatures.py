"""What a SavedModel takes and gives: preprocessing, network, names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data import preprocess
from nfnets_tf.data.dimensions import MAX_PIXELS, pixel_count

# Returns (features or None, logits) of images in [0, 255].
Network = Callable[[tf.Tensor], tuple]


class Service(tf.Module):
  """The module that is saved.

  Called on `images`, uint8 or float32 in [0, 255], [batch, height, width, 3],
  it applies the operations and returns `logits` and `probabilities`, float32
  [batch, classes], and `classes`, the most likely names, [batch].

  Args:
    network: maps images as the operations give them to (features, logits).
    class_names: name of each class, in the order of the logits.
    operations: `preprocess` operations of the evaluation; the last one fixes
      the size. Without any, images go into the network as they are.
    **tracked: attributes that hold the network's variables, so that they are
      saved.
  """

  def __init__(
    self,
    network: Network,
    class_names: Sequence[str],
    operations: Sequence[preprocess.Operation],
    **tracked,
  ):
    super().__init__(name="service")
    # The variables alone: saving the Keras objects as well would trace every
    # layer once more and tie the result to their classes.
    for name, variables in tracked.items():
      setattr(self, name, variables)
    self._class_names = list(class_names)
    self._prepare_one = preprocess.compose(operations)
    self._size = self._prepared_size()
    # All signatures call one function, traced once. Inlined into a graph of a
    # session, as TensorFlow Serving makes one, its constants would wait for
    # every variable, and GELUs would not be fused any more.
    self.network = tf.function(
      network,
      input_signature=[tf.TensorSpec([None, *self._size], tf.float32)],
      autograph=False,
      experimental_attributes={"_noinline": True},
    )

  def _prepared_size(self) -> tf.TensorShape:
    any_image = tf.TensorSpec([None, None, 3], tf.uint8)
    traced = tf.function(self._prepare).get_concrete_function(any_image)
    return traced.output_shapes

  def _prepare(self, image):
    prepared = self._prepare_one(image, tf.zeros([2], tf.int64))
    return tf.cast(prepared, tf.float32)

  def _map(self, prepare, images):
    result = tf.TensorSpec(self._size, tf.float32)
    return tf.map_fn(prepare, images, fn_output_signature=result)

  def prepare(self, images: tf.Tensor) -> tf.Tensor:
    """Applies the operations to each image of [batch, height, width, 3].

    Returns:
      float32 in [0, 255], as the network takes them.
    """
    if images.dtype.is_floating:
      images = tf.debugging.check_numerics(images, "images must be finite")
    return self._map(self._prepare, images)

  def _prepare_encoded(self, encoded):
    """Decodes JPEG, PNG, GIF or BMP strings [batch] and prepares them."""

    def prepare(string):
      small_enough = tf.debugging.assert_less_equal(
        pixel_count(string),
        tf.constant(MAX_PIXELS, tf.int64),
        f"an image may have {MAX_PIXELS:,} pixels at most",
      )
      with tf.control_dependencies([small_enough]):
        string = tf.identity(string)
      return self._prepare(preprocess.decode(string))

    return self._map(prepare, encoded)

  def _answer(self, prepared):
    _, logits = self.network(prepared)
    best = tf.argmax(logits, axis=-1)
    return {
      "logits": logits,
      "probabilities": tf.nn.softmax(logits),
      "classes": tf.gather(tf.constant(self._class_names), best),
    }

  @tf.function
  def __call__(self, images):
    return self._answer(self.prepare(images))

  @tf.function
  def _answer_encoded(self, encoded):
    return self._answer(self._prepare_encoded(encoded))

  @tf.function
  def _features(self, images):
    features, _ = self.network(self.prepare(images))
    return {"features": features}

  def signatures(self) -> dict:
    """Returns {name: concrete function} of all signatures."""
    images, uint8 = (
      tf.TensorSpec([None, None, None, 3], dtype, name="images")
      for dtype in (tf.float32, tf.uint8)
    )
    encoded = tf.TensorSpec([None], tf.string, name="encoded")
    named = {
      "serving_default": self.__call__.get_concrete_function(images),
      "serving_uint8": self.__call__.get_concrete_function(uint8),
      "serving_bytes": self._answer_encoded.get_concrete_function(encoded),
    }
    features, _ = self.network.get_concrete_function().structured_outputs
    if features is not None:
      named["features"] = self._features.get_concrete_function(images)
    return named
