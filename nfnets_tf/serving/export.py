"""A trained classifier as a SavedModel that takes images as they come."""

import contextlib
import os
import uuid
from collections.abc import Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data import preprocess
from nfnets_tf.models import naming
from nfnets_tf.ops.errors import UserError


def export_saved_model(
  model: keras.Model,
  directory: str,
  *,
  class_names: Sequence[str],
  operations: Sequence[preprocess.Operation],
  averaged: bool = True,
) -> str:
  """Writes a SavedModel with two signatures; the folder appears whole.

  `serving_default` takes `images`, uint8 [batch, height, width, 3];
  `serving_bytes` takes `encoded`, strings [batch] of JPEG or PNG images, of any
  sizes. Both apply `operations` and return `logits` and `probabilities`,
  float32 [batch, classes], and `classes`, the most likely names, [batch].

  Args:
    model: a `Classifier`; its training state is left as it is.
    directory: to be made, such as "serving/1".
    class_names: name of each class, in the order of the logits.
    operations: `preprocess` operations of the evaluation; the last one fixes
      the size.
    averaged: whether to export the averaged weights or the raw ones.

  Returns:
    `directory`.

  Raises:
    UserError: if the folder exists, the names do not fit the network, or there
      are no averaged weights.
  """
  if tf.io.gfile.exists(directory):
    raise UserError(
      f"the folder {directory!r} exists already and is not overwritten; export"
      f" to another, such as {next_version(os.path.dirname(directory))!r}."
    )
  classes = model.network.output_shape[-1]
  if len(class_names) != classes:
    raise UserError(
      f"class_names has {len(class_names)} names, but the network has"
      f" {classes} classes; give one name a class."
    )
  parent, name = os.path.split(directory)
  partial = os.path.join(parent, f"partial-{uuid.uuid4().hex[:8]}-{name}")
  module = _Service(model, class_names, operations)
  try:
    with model.averaged() if averaged else contextlib.nullcontext():
      tf.saved_model.save(module, partial, module.signatures())
    _move(partial, directory)
  finally:
    if tf.io.gfile.isdir(partial):
      tf.io.gfile.rmtree(partial)
  return directory


def _move(partial: str, directory: str) -> None:
  """Gives a folder its name, so that no server takes a part for the whole."""
  if "://" not in directory:
    tf.io.gfile.rename(partial, directory)
    return
  # Elsewhere folders are not moved at once, if at all; files are.
  model = os.path.join(partial, "saved_model.pb")
  paths = [
    os.path.join(folder, name)
    for folder, _, names in tf.io.gfile.walk(partial)
    for name in names
  ]
  for path in sorted(paths, key=lambda path: path == model):
    target = directory + path[len(partial) :]
    tf.io.gfile.makedirs(os.path.dirname(target))
    tf.io.gfile.rename(path, target)


def export_version(model: keras.Model, directory: str, **options) -> str:
  """Exports to the first of directory/1, directory/2, ... that is free.

  Args:
    model: a `Classifier`.
    directory: holds the versions, as TensorFlow Serving expects them.
    **options: those of `export_saved_model`.

  Returns:
    The version's folder.
  """
  return export_saved_model(model, next_version(directory), **options)


def next_version(directory: str) -> str:
  """Returns the first of directory/1, directory/2, ... that is free."""
  version = 1
  while tf.io.gfile.exists(os.path.join(directory, str(version))):
    version += 1
  return os.path.join(directory, str(version))


class _Service(tf.Module):
  """The graph that is exported: preprocessing, network, names."""

  def __init__(self, model, class_names, operations):
    super().__init__(name="service")
    # The variables alone are tracked: saving the Keras objects as well would
    # trace every layer once more and tie the result to their classes. By their
    # names, `load_weights` finds them again.
    self.parameters = naming.named_variables(model.network)
    self._class_names = tf.constant(list(class_names))

    preprocess_one = preprocess.compose(operations)

    def prepare(image):
      return preprocess_one(image, tf.zeros([2], tf.int64))

    def answer(images):
      size = prepare(tf.zeros([8, 8, 3], tf.uint8)).shape
      ready = tf.map_fn(
        prepare, images, fn_output_signature=tf.TensorSpec(size, tf.uint8)
      )
      logits = model(ready, training=False)
      best = tf.argmax(logits, axis=-1)
      return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        "classes": tf.gather(self._class_names, best),
      }

    self._answer = answer

  def signatures(self):
    images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    encoded = tf.TensorSpec([None], tf.string, name="encoded")
    return {
      "serving_default": tf.function(
        lambda images: self._answer(images)
      ).get_concrete_function(images),
      "serving_bytes": tf.function(
        lambda encoded: self._answer(encoded)
      ).get_concrete_function(encoded),
    }
