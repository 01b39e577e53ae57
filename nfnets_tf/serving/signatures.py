"""Signatures of a SavedModel: preprocessing, network, class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.data.decoding import MAX_PIXELS, decode, pixel_count

# Returns (features or None, logits) of images in [0, 255].
Network = Callable[[tf.Tensor], tuple]


class ServingModule(tf.Module):
  """The root of a SavedModel.

  Called on `images`, uint8 or float32 in [0, 255], [batch, height, width, 3],
  it applies the transforms and returns `logits` and `probabilities`, float32
  [batch, classes], and `classes`, the most likely names, [batch].

  Args:
    network: maps preprocessed images to (features, logits).
    class_names: name of each class, in the order of the logits.
    transforms: `preprocessing` transforms of the evaluation; the last one sets
      the size. Without any, images enter the network unchanged.
    **tracked: attributes that hold the network's variables, to save them.
  """

  def __init__(
    self,
    network: Network,
    class_names: Sequence[str],
    transforms: Sequence[preprocessing.Transform],
    **tracked,
  ):
    super().__init__(name="service")
    # Only the variables: saving Keras objects would trace every layer again
    # and tie the SavedModel to their classes.
    for name, variables in tracked.items():
      setattr(self, name, variables)
    self._class_names = list(class_names)
    self._preprocess = preprocessing.compose(transforms)
    self._size = self._preprocessed_size()
    # All signatures call one function, traced once. It must not be inlined: in
    # the session graph of TensorFlow Serving its constants would get control
    # dependencies on every variable, and GELUs would not be fused.
    self.network = tf.function(
      network,
      input_signature=[tf.TensorSpec([None, *self._size], tf.float32)],
      autograph=False,
      experimental_attributes={"_noinline": True},
    )

  def _preprocessed_size(self) -> tf.TensorShape:
    any_image = tf.TensorSpec([None, None, 3], tf.uint8)
    traced = tf.function(self._preprocess_one).get_concrete_function(any_image)
    return traced.output_shapes

  def _preprocess_one(self, image):
    result = self._preprocess(image, tf.zeros([2], tf.int64))
    return tf.cast(result, tf.float32)

  def _map(self, function, images):
    result = tf.TensorSpec(self._size, tf.float32)
    return tf.map_fn(function, images, fn_output_signature=result)

  def preprocess(self, images: tf.Tensor) -> tf.Tensor:
    """Applies the transforms to each image.

    Args:
      images: uint8 or float32 in [0, 255], [batch, height, width, 3].

    Returns:
      The network's input, float32 in [0, 255], [batch, size, size, 3].
    """
    if images.dtype.is_floating:
      images = tf.debugging.check_numerics(images, "images must be finite")
    return self._map(self._preprocess_one, images)

  def _preprocess_encoded(self, encoded):
    """Decodes JPEG, PNG, GIF or BMP strings [batch] and prepares them."""

    def decode_and_preprocess(string):
      small_enough = tf.debugging.assert_less_equal(
        pixel_count(string),
        tf.constant(MAX_PIXELS, tf.int64),
        f"an image may have at most {MAX_PIXELS:,} pixels",
      )
      with tf.control_dependencies([small_enough]):
        string = tf.identity(string)
      return self._preprocess_one(decode(string))

    return self._map(decode_and_preprocess, encoded)

  def _classify(self, preprocessed):
    _, logits = self.network(preprocessed)
    best = tf.argmax(logits, axis=-1)
    return {
      "logits": logits,
      "probabilities": tf.nn.softmax(logits),
      "classes": tf.gather(tf.constant(self._class_names), best),
    }

  @tf.function
  def __call__(self, images):
    return self._classify(self.preprocess(images))

  @tf.function
  def _classify_encoded(self, encoded):
    return self._classify(self._preprocess_encoded(encoded))

  @tf.function
  def _features(self, images):
    features, _ = self.network(self.preprocess(images))
    return {"features": features}

  def signatures(self) -> dict:
    """Returns {signature: its concrete function}."""
    images, uint8 = (
      tf.TensorSpec([None, None, None, 3], dtype, name="images")
      for dtype in (tf.float32, tf.uint8)
    )
    encoded = tf.TensorSpec([None], tf.string, name="encoded")
    functions = {
      "serving_default": self.__call__.get_concrete_function(images),
      "serving_uint8": self.__call__.get_concrete_function(uint8),
      "serving_bytes": self._classify_encoded.get_concrete_function(encoded),
    }
    features, _ = self.network.get_concrete_function().structured_outputs
    if features is not None:
      functions["features"] = self._features.get_concrete_function(images)
    return functions
