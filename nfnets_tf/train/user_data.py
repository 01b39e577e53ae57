"""What images, labels and weights of a user can be; the rest is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError, require
from nfnets_tf.keras_api import keras
from nfnets_tf.ops.losses import MixedLabels, check_labels
from nfnets_tf.ranges import number

_SAMPLED_IMAGES = 16


class Expected(NamedTuple):
  """What a classifier takes.

  Attributes:
    images: shape of a batch, with None for the sizes that are free.
    num_classes: number of logits.
    in_bytes: whether images are expected in [0, 255].
  """

  images: tuple[int | None, ...]
  num_classes: int
  in_bytes: bool = True


def check_images(
  shape, dtype, expected: Expected, *, batched: str = "batch"
) -> None:
  """Raises a UserError unless images can be those of a network.

  Args:
    shape: of a batch; sizes may be unknown.
    dtype: NumPy's or TensorFlow's.
    expected: by the classifier.
    batched: "array" or "batch", for the advice.
  """
  shape, wanted = tuple(tf.TensorShape(shape).as_list()), expected.images
  dtype = tf.as_dtype(dtype)
  numeric = dtype.is_integer or dtype.is_floating
  fits = len(shape) == len(wanted) and all(
    None in pair or pair[0] == pair[1] for pair in zip(shape, wanted)
  )
  if numeric and fits:
    return
  received = f"images of shape {shape} and {dtype.name}"
  takes = f"the network takes {wanted}, numbers in [0, 255]"
  advice = _advice(shape, wanted, batched) if numeric else ""
  raise UserError(f"{received}, but {takes}{advice}.")


def _advice(shape, wanted, batched: str) -> str:
  """Returns how images of a wrong shape can be mended, "" if unknown."""
  channels = wanted[-1]
  if len(wanted) != 4:
    return ""
  if len(shape) == 3 and shape[-1] == channels:
    return (
      "; call dataset.batch(32)"
      if batched == "batch"
      else "; add the axis of examples by images[None]"
    )
  if len(shape) == 3 and channels == 3:
    return "; repeat gray images by np.repeat(images[..., None], 3, axis=-1)"
  if len(shape) == 4 and shape[1] == channels:
    return "; move the channels to the end by np.moveaxis(images, 1, -1)"
  if len(shape) == 4 and shape[-1] == 1 and channels == 3:
    return "; repeat gray images by tf.image.grayscale_to_rgb(images)"
  if len(shape) == 4 and shape[-1] == 4 and channels == 3:
    return "; drop the transparency by images[..., :3]"
  return ""


def check_weights(shape, dtype) -> None:
  """Raises a UserError unless weights are [examples] or [examples, 1]."""
  shape, dtype = tf.TensorShape(shape), tf.as_dtype(dtype)
  numeric = dtype.is_integer or dtype.is_floating or dtype.is_bool
  fits = shape.rank in (None, 1) or (shape.rank == 2 and shape[1] in (None, 1))
  if not (numeric and fits):
    raise UserError(
      f"weights of shape {shape} and {dtype.name}; expected one number for each"
      " example, [examples] or [examples, 1]."
    )


def refuse_ragged(images) -> None:
  """Raises a UserError if images are a ragged or sparse tensor, or its spec."""
  if isinstance(
    images,
    (
      tf.RaggedTensor,
      tf.SparseTensor,
      tf.RaggedTensorSpec,
      tf.SparseTensorSpec,
    ),
  ):
    raise UserError(
      f"images are a {type(images).__name__}; expected tensors of one size, for"
      " example by tf.image.resize before they are batched."
    )


def canonical_weights(weights: tf.Tensor | None) -> tf.Tensor | None:
  """Returns weights [examples] or [examples, 1] as float32 [examples]."""
  if weights is None:
    return None
  check_weights(weights.shape, weights.dtype)
  if weights.shape.rank != 1:
    weights = tf.reshape(weights, [-1])
  return tf.cast(weights, tf.float32)


def unpack_batch(data) -> tuple:
  """Returns (images, labels, weights float32 [batch] or None) of a batch.

  Args:
    data: what Keras passes to a step: a tuple of images [batch, ...], labels
      (a tensor or `MixedLabels`) and optionally weights.

  Raises:
    UserError: if labels are missing, or weights have another shape.
  """
  images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
  if labels is None:
    raise UserError("a batch has images alone; expected labels too.")
  if isinstance(labels, tf.Tensor) and labels.shape.rank is None:
    # Keras has traced a step for labels of several forms.
    labels = tf.reshape(labels, [tf.shape(labels)[0], -1])
  return images, labels, canonical_weights(weights)


def as_images(images):
  """Returns images as an array or a tensor, checked to be one.

  Args:
    images: an array, or a list of arrays of one size.
  """
  refuse_ragged(images)
  if isinstance(images, Mapping):
    raise UserError("images are a dict; expected an array [examples, ...].")
  if isinstance(images, (list, tuple)):
    if len(images) == 1 and np.ndim(images[0]) > 3:
      return images[0]  # Keras' form for a model of several inputs
    shapes = sorted({np.shape(image) for image in images}, key=str)
    if len(shapes) > 1:
      raise UserError(
        f"images of several sizes, such as {shapes[0]} and {shapes[1]}; resize"
        " them to one, for example by tf.image.resize."
      )
    return np.asarray(images)
  return images if hasattr(images, "dtype") else np.asarray(images)


def check_range(images, expected: Expected) -> None:
  """Warns of images that are not in [0, 255]."""
  if not expected.in_bytes or tf.as_dtype(images.dtype) == tf.uint8:
    return  # of bytes there is nothing to say, in any step
  some = np.asarray(images[:_SAMPLED_IMAGES]).astype(np.float32)
  largest = np.abs(some).max(initial=0.0)
  if 0 < largest <= 1 and tf.as_dtype(images.dtype).is_floating:
    warnings.warn(
      f"the first {len(some)} images are in [{some.min():.3g},"
      f" {some.max():.3g}]; a Classifier expects [0, 255] and normalizes them"
      " itself: multiply them by 255, or give mean_rgb and stddev_rgb in other"
      " units.",
      stacklevel=5,
    )
  elif largest > 256:
    warnings.warn(
      f"the first {len(some)} images reach {some.max():.6g}; a Classifier"
      " expects [0, 255].",
      stacklevel=5,
    )


def as_labels(labels, count: int, num_classes: int):
  """Returns labels as an array of one of two forms, checked by its values.

  Args:
    labels: an array, a list, a tensor or a pandas series.
    count: of the images.
    num_classes: of the network.

  Returns:
    int32 [n] or floats [n, num_classes].

  Raises:
    UserError: if they are no labels of that many classes.
  """
  if isinstance(labels, Mapping):
    raise UserError("labels are a dict; expected an array of classes.")
  if isinstance(labels, (list, tuple)) and len(labels) == 1 < count:
    labels = labels[0]  # Keras' form for a model of several outputs
  try:
    labels = np.asarray(labels)
    if labels.dtype == object:  # of pandas
      labels = np.asarray(labels.tolist())
  except ValueError as error:
    raise UserError("labels are lists of unlike lengths.") from error
  if labels.dtype.kind == "V":  # bfloat16
    labels = labels.astype(np.float32)
  if labels.dtype.kind == "b":
    labels = labels.astype(np.int32)
  if labels.dtype.kind in "OMm":
    labels = labels.astype(str)
  check_labels(labels.shape, labels.dtype.type, num_classes)
  soft = labels.ndim == 2 and labels.shape[1] == num_classes
  if soft and (num_classes > 1 or labels.dtype.kind == "f"):
    _check_distributions(labels)
    return labels if labels.dtype.kind == "f" else labels.astype(np.float32)
  labels = labels.reshape(-1)
  _check_classes(labels, num_classes)
  return labels.astype(np.int32)


def _check_classes(labels: np.ndarray, num_classes: int) -> None:
  if labels.dtype.kind == "f" and not np.all(labels == np.floor(labels)):
    bad = labels[labels != np.floor(labels)][0]
    raise UserError(
      f"labels are fractions, such as {bad:.6g}; expected whole numbers from 0"
      f" to {num_classes - 1}, or soft labels [examples, {num_classes}]."
    )
  low, high = (labels.min(), labels.max()) if len(labels) else (0, 0)
  if low < 0 or high >= num_classes:
    from_one = low == 1 and high == num_classes
    raise UserError(
      f"labels are from {low:g} to {high:g}, and those of a network of"
      f" {num_classes} classes from 0 to {num_classes - 1};"
      + (
        " subtract 1 from the labels."
        if from_one
        else " mend the labels, or give the network more classes."
      )
    )


def _check_distributions(labels: np.ndarray) -> None:
  rows = labels.astype(np.float32)
  sums = rows.sum(axis=1)
  bad = ~((rows >= 0).all(axis=1) & (np.abs(sums - 1) < 0.01))
  if bad.any():
    first = int(np.argmax(bad))
    raise UserError(
      f"labels of example {first} sum to {sums[first]:.4g}; expected one-hot or"
      " soft labels, >= 0 and of sum 1, since a softmax has one class an image."
    )


def class_weights_of(labels: tf.Tensor, table: Sequence[float]) -> tf.Tensor:
  """Returns the weight of each example by its class, float32 [n].

  Args:
    labels: classes [n] or [n, 1], or one-hot or soft labels [n, classes].
    table: weight of every class.
  """
  if labels.shape.rank == 2 and labels.shape[1] != 1:
    labels = tf.argmax(tf.cast(labels, tf.float32), axis=1)
  labels = tf.cast(tf.reshape(labels, [-1]), tf.int64)
  return tf.gather(tf.constant(table, tf.float32), labels)


def check_class_weight(class_weight, labels, num_classes: int) -> None:
  """Checks `class_weight` as far as Keras would fail in a graph, or train none.

  Args:
    class_weight: of a user.
    labels: an array where they are known already.
    num_classes: of the network.
  """
  if not isinstance(class_weight, Mapping):
    raise UserError(
      f"class_weight is a {type(class_weight).__name__}; expected a dict"
      " {class: weight}, such as dict(enumerate(weights))."
    )
  if set(class_weight) != set(range(len(class_weight))):
    raise UserError(
      f"class_weight has the keys {sorted(class_weight, key=str)}; expected all"
      " classes from 0 on."
    )
  for key, weight in class_weight.items():
    valid = number(0).contains(weight)
    require(valid, f"class_weight[{key}]", weight, "a number >= 0")
  if isinstance(labels, MixedLabels):
    raise UserError(
      "class_weight received mixed labels, which have no class; weigh the"
      " examples by sample_weight instead."
    )
  if isinstance(labels, np.ndarray) and labels.size:
    classes = labels if labels.ndim == 1 else labels.argmax(axis=1)
    largest, used = classes.max(), np.unique(classes)
  else:  # a GPU would take 0 for a missing weight
    largest, used = num_classes - 1, range(num_classes)
  if largest >= len(class_weight):
    raise UserError(
      f"class_weight has no weight for class {largest}; expected all classes"
      " from 0 on."
    )
  if not any(class_weight[key] for key in used):
    raise UserError(
      "class_weight is 0 for the class of every example, so that nothing would"
      " be trained."
    )
