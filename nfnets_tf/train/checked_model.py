"""A Keras model that checks its data before Keras builds a graph for them.

Keras would fail within the graph, or train on what was not meant. What has
values (arrays, and the first batch of a Python generator or of a
`keras.utils.Sequence`) is checked by its values, a `tf.data.Dataset` by the
types and shapes of its elements.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import UserError, refuse_keras3
from nfnets_tf.keras_api import keras
from nfnets_tf.ops.losses import MixedLabels, check_labels
from nfnets_tf.train.user_data import (
  Expected,
  as_images,
  as_labels,
  canonical_weights,
  check_class_weight,
  check_images,
  check_range,
  check_weights,
  class_weights_of,
  refuse_ragged,
)

_FORMS = "(images, labels) or (images, labels, weights)"


class CheckedModel(keras.Model):
  """A `keras.Model` whose methods check images, labels and weights."""

  def expected_data(self) -> Expected | None:
    """Returns what the model takes; None leaves all checks to Keras."""
    raise NotImplementedError

  def fit(self, *args, **kwargs):
    """Trains; see `keras.Model.fit`."""
    checked = self._checked(super().fit, args, kwargs)
    weights = checked.get("sample_weight")
    if isinstance(weights, np.ndarray) and weights.size and not weights.any():
      raise UserError(
        "sample_weight, times class_weight if one is given, is 0 for every"
        " example, so that nothing would be trained."
      )
    callbacks = checked.get("callbacks") or []
    for callback in getattr(callbacks, "callbacks", tf.nest.flatten(callbacks)):
      if isinstance(callback, keras.callbacks.ModelCheckpoint):
        if not callback.save_weights_only:
          self._refuse_hdf5(callback.filepath)
    return super().fit(**checked)

  def evaluate(self, *args, **kwargs):
    """Evaluates; see `keras.Model.evaluate`."""
    return super().evaluate(**self._checked(super().evaluate, args, kwargs))

  def predict(self, *args, **kwargs):
    """Predicts; see `keras.Model.predict`."""
    return super().predict(**self._checked(super().predict, args, kwargs))

  def train_on_batch(self, *args, **kwargs):
    """Runs one step; see `keras.Model.train_on_batch`.

    As in Keras, metrics are means since the last reset: give
    `reset_metrics=True` for those of this batch alone.
    """
    checked = self._checked(super().train_on_batch, args, kwargs)
    return super().train_on_batch(**checked)

  def test_on_batch(self, *args, **kwargs):
    """Evaluates one batch; see `keras.Model.test_on_batch`."""
    checked = self._checked(super().test_on_batch, args, kwargs)
    return super().test_on_batch(**checked)

  def predict_on_batch(self, *args, **kwargs):
    """Predicts one batch; see `keras.Model.predict_on_batch`."""
    checked = self._checked(super().predict_on_batch, args, kwargs)
    return super().predict_on_batch(**checked)

  def save(self, filepath, *args, **kwargs):
    """Saves a `.keras` file or a SavedModel folder; see `keras.Model.save`."""
    self._refuse_hdf5(filepath, kwargs.get("save_format"))
    return super().save(filepath, *args, **kwargs)

  def _refuse_hdf5(self, filepath, save_format=None) -> None:
    name, kind = str(filepath), type(self).__name__
    if save_format == "h5" or name.endswith((".h5", ".hdf5")):
      raise UserError(
        f"{name!r} would be an HDF5 file, which cannot hold a {kind}; save a"
        " .keras file or a folder (save_format='tf'), or its weights or network"
        " alone (save_weights, network.save)."
      )

  def _checked(self, method, args, kwargs):
    name = f"{type(self).__name__}.{method.__name__}"
    refuse_keras3(name, *args, *kwargs.values())
    return checked_arguments(method, args, kwargs, self.expected_data())


def checked_arguments(
  method: Callable,
  args: Sequence,
  kwargs: Mapping,
  expected: Expected | None,
) -> dict:
  """Returns the arguments of a method of `keras.Model`, checked.

  Args:
    method: `fit`, `evaluate`, `predict` or one of their `_on_batch` forms,
      bound to a model.
    args: its positional arguments.
    kwargs: its other arguments.
    expected: by the model; None checks nothing.

  Returns:
    The arguments by name. Lists are arrays, labels of arrays are int32 [n] or
    float [n, classes], and a generator that was looked at starts anew.

  Raises:
    UserError: if Keras could not use them, or would misread them.
  """
  values = inspect.signature(method).bind(*args, **kwargs).arguments
  extra = values.pop("kwargs", {})
  if expected is None:
    return {**values, **extra}
  labeled = "y" in inspect.signature(method).parameters
  check = _Checker(expected, labeled)
  data = tuple(values.get(name) for name in ("x", "y", "sample_weight"))
  checked = check.data(data)
  for name, value in zip(("x", "y", "sample_weight"), checked):
    if name in values:
      values[name] = value
  if values.get("class_weight") is not None:
    check_class_weight(
      values["class_weight"], values.get("y"), expected.num_classes
    )
    _merge_class_weight(values)
  validation = values.get("validation_data")
  if isinstance(validation, (tuple, list)):
    checked = check.data((*validation, None, None)[:3])
    values["validation_data"] = checked[: max(2, len(validation))]
  elif validation is not None:
    values["validation_data"] = check.data((validation, None, None))[0]
  return {**values, **extra}


def _merge_class_weight(values: dict) -> None:
  """Multiplies class weights into the weights of examples, if there are any.

  Keras 2 has this feature, but fails on batches of unknown size, as all are.
  """
  x, weights = values["x"], values.get("sample_weight")
  table = [
    values["class_weight"][i] for i in range(len(values["class_weight"]))
  ]
  if isinstance(x, tf.data.Dataset) and len(x.element_spec) == 3:
    values["x"] = x.map(
      lambda images, labels, weights: (
        images,
        labels,
        canonical_weights(weights) * class_weights_of(labels, table),
      )
    )
  elif weights is not None and not values.get("validation_split"):
    factors = class_weights_of(tf.constant(values["y"]), table).numpy()
    values["sample_weight"] = weights.reshape(-1) * factors
  elif weights is not None:
    raise UserError(
      "class_weight, sample_weight and validation_split do not work together;"
      " give validation_data."
    )
  else:
    return
  del values["class_weight"]


class _Checker:
  """Checks data in any form that Keras takes."""

  def __init__(self, expected: Expected, labeled: bool):
    self._expected = expected
    self._labeled = labeled

  def data(self, data: tuple) -> tuple:
    """Returns (x, y, sample_weight), checked; see `checked_arguments`."""
    x, y, weights = data
    if x is None or callable(x):
      return data
    if hasattr(x, "element_spec"):
      self._check_spec(x.element_spec)
      return data
    if isinstance(x, keras.utils.Sequence):
      if len(x):
        self._check_batch(x[0])
      return data
    if hasattr(x, "__next__"):
      first = next(x, None)
      if first is None:
        raise UserError(
          "the generator of batches yields nothing; has it been used up?"
        )
      self._check_batch(first)
      return itertools.chain([first], x), y, weights
    return self._arrays(x, y, weights)

  def _check_batch(self, batch) -> None:
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if isinstance(batch, MixedLabels) or not 1 <= len(parts) <= 3:
      parts = (batch,)
    if self._labeled:
      self._require_labels(parts)
    self._arrays(*(*parts, None, None)[:3])

  def _require_labels(self, parts: tuple) -> None:
    if len(parts) < 2 or parts[1] is None:
      kind = type(parts[0]).__name__
      got = f"a {kind}" if isinstance(parts[0], Mapping) else "images alone"
      raise UserError(f"batches are {got}; expected {_FORMS}.")

  def _check_spec(self, spec) -> None:
    parts = spec if type(spec) is tuple else (spec,)
    images = parts[0]
    if isinstance(images, Mapping):
      self._require_labels(parts[:1])
    refuse_ragged(images)
    if not isinstance(images, tf.TensorSpec):
      return  # of a distributed dataset
    if images.shape.rank is None:
      raise UserError(
        "images of the dataset have an unknown rank; set their shape in"
        " `dataset.map` by tf.ensure_shape(images, [None, None, None, 3])."
      )
    check_images(images.shape, images.dtype, self._expected, batched="batch")
    if not self._labeled:
      return
    self._require_labels(parts)
    labels, *weights = parts[1:]
    if isinstance(labels, tf.TensorSpec):
      check_labels(labels.shape, labels.dtype, self._expected.num_classes)
    elif not isinstance(labels, MixedLabels):
      raise UserError(
        f"labels are a {type(labels).__name__}; expected a dataset of {_FORMS}."
      )
    if weights and isinstance(weights[0], tf.TensorSpec):
      check_weights(weights[0].shape, weights[0].dtype)

  def _arrays(self, images, labels, weights) -> tuple:
    if tf.is_symbolic_tensor(images):
      return images, labels, weights
    images = as_images(images)
    check_images(images.shape, images.dtype, self._expected, batched="array")
    check_range(images, self._expected)
    if not self._labeled:
      return images, labels, weights
    self._require_labels((images, labels))
    if not isinstance(labels, MixedLabels):
      labels = as_labels(labels, len(images), self._expected.num_classes)
    if weights is not None:
      weights = np.asarray(weights)
      check_weights(weights.shape, weights.dtype)
      invalid = ~(np.isfinite(weights) & (weights >= 0))
      if invalid.any():
        value = weights[invalid].flat[0]
        raise UserError(f"sample_weight has {value}; expected numbers >= 0.")
    for name, part in (("labels", labels), ("weights", weights)):
      if part is None:
        continue
      count = len(part[0] if isinstance(part, MixedLabels) else part)
      if count != len(images):
        raise UserError(
          f"there are {len(images)} images and {count} {name}; expected as many"
          " of both."
        )
    return images, labels, weights


def refuse_other_losses(network: keras.Model, kwargs: dict) -> None:
  """Removes absent losses and metrics from the arguments of `compile`.

  Raises:
    UserError: if some are given, or the network has losses of its own.
  """
  for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
    if kwargs.pop(name, None) not in (None, []):
      raise UserError(
        f"Classifier.compile received {name}, but its loss (softmax"
        " cross-entropy) and metrics are built in; remove the argument, or"
        " set Classifier.label_smoothing."
      )
  if network.losses:
    raise UserError(
      "Classifier.compile found a regularizer in the network, whose loss it"
      " would not minimize; remove it, and decay weights by"
      " SGD(weight_decay=...)."
    )
