"""A trained classifier as a SavedModel that needs this project no more."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data import preprocess
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import write_atomically
from nfnets_tf.serving import formats as kinds
from nfnets_tf.serving import model_card
from nfnets_tf.serving.inference import DTYPES, TARGETS, network_of
from nfnets_tf.serving.signatures import Service
from nfnets_tf.serving.trial import Trial
from nfnets_tf.serving.versions import appearing_as_next, appearing_whole

LOGGER = logging.getLogger("nfnets_tf")

Sample = tuple[np.ndarray, "np.ndarray | None"]


class Exporter:
  """Writes SavedModels: plain convolutions, four signatures, a model card.

  Args:
    fold: whether an NFNet's standardization, gains and scales are folded into
      its kernels; an unfolded SavedModel has the weights of training, and
      `load_weights` reads them. Other networks are exported as they are.
    dtype: that a folded network computes in, "float32" or "bfloat16", for CPUs
      with AVX512 and for accelerators. What is returned is float32.
    target: "cpu" or "accelerator": for whom a folded network is written. Either
      runs on both.
    averaged: whether the averages of the weights, where there are any, or the
      raw weights are exported.
    formats: files beside the SavedModel, of `formats.FILES`.
    licence: of the weights, for the card; None is not stated.

  Raises:
    UserError: if an argument is none of these.
  """

  def __init__(
    self,
    *,
    fold: bool = True,
    dtype: str = "float32",
    target: str = "cpu",
    averaged: bool = True,
    formats: Sequence[str] = (),
    licence: str | None = None,
  ):
    _check_one_of("dtype", dtype, DTYPES)
    _check_one_of("target", target, TARGETS)
    if not fold and dtype != "float32":
      raise UserError(
        f"dtype = {dtype!r} needs a folded network; give fold=True, or"
        " dtype='float32'."
      )
    self.fold, self.dtype, self.target = fold, dtype, target
    kinds.check_formats(formats)
    self.averaged, self.formats = averaged, tuple(formats)
    self.licence = licence

  def __call__(
    self,
    model: keras.Model,
    directory: str,
    *,
    class_names: Sequence[str],
    operations: Sequence[preprocess.Operation],
    sample: Sample | None = None,
    about: Mapping[str, object] | None = None,
  ) -> str:
    """Exports to the next of directory/1, directory/2, ...

    Args:
      model: a `Classifier`; its state is left as it is.
      directory: holds the versions, as TensorFlow Serving expects them.
      class_names: name of each class, in the order of the logits.
      operations: `preprocess` operations of the evaluation.
      sample: images as `operations` leave them, uint8 [images, height, width,
        3], and their labels or None, on which the export is compared with the
        network in training.
      about: for the card: `data` and `metrics`, {name: value}, and
        `configuration`, a gin file's text.

    Returns:
      The version's folder.
    """
    return self.write(
      model,
      appearing_as_next(directory),
      class_names=class_names,
      operations=operations,
      sample=sample,
      about=about or {},
    )

  def write(
    self, model, place, *, class_names, operations, sample, about
  ) -> str:
    """Does what a call does, to a folder of `versions`.

    Raises:
      UserError: if the names do not fit the network, or a format lacks a
        sample.
    """
    _check(model, class_names)
    if self.formats and sample is None:
      raise UserError(
        f"the formats {', '.join(self.formats)} need images to be tried on, and"
        " none were given; give a sample."
      )
    averaged = self.averaged and bool(model.averages)
    weights = model.averaged() if averaged else contextlib.nullcontext()
    with place as partial:
      # What is trained on is not what serves, and may be full.
      with tf.device("CPU"), weights:
        form, signatures, lines = self._fill(
          partial.folder, model, class_names, operations, sample
        )
      card = model_card.render(
        model.network,
        exported={
          **model_card.describe_network(model.network, operations),
          "form": form,
          "weights": "averages, where there are any" if averaged else "raw",
        },
        comparisons=lines or ["Not compared: no images were given."],
        class_names=class_names,
        signatures=signatures,
        licence=self.licence,
        **about,
      )
      texts = {
        "MODEL_CARD.md": card,
        "classes.txt": "\n".join([*class_names, ""]),
        "config.gin": about.get("configuration"),
      }
      for name, text in texts.items():
        if text:
          write_atomically(os.path.join(partial.folder, name), text)
    LOGGER.info("Exported %s.", partial.path)
    for line in lines:
      LOGGER.info("  %s.", line)
    return partial.path

  def _fill(self, partial, model, class_names, operations, sample):
    """Writes the SavedModel and the formats.

    Returns:
      Its form, the names of its signatures, and lines about its answers.
    """
    network, tracked = network_of(
      model, fold=self.fold, dtype=self.dtype, target=self.target
    )
    service = Service(network, class_names, operations, **tracked)
    signatures = service.signatures()
    tf.saved_model.save(service, partial, signatures)
    form = f"folded, {self.dtype}" if "folded" in tracked else "as in training"
    if sample is None:
      return form, signatures, []
    trial = Trial(model, *sample)
    lines = [trial.saved_model(partial)]
    for kind in self.formats:
      # Other runtimes fuse a GELU themselves.
      network, tracked = network_of(
        model, fold=self.fold, dtype="float32", target="accelerator"
      )
      module = tf.Module()
      module.tracked = tracked
      lines.append(trial.file(kind, partial, network, module))
    return form, signatures, lines


def export_saved_model(
  model: keras.Model,
  directory: str,
  *,
  class_names: Sequence[str],
  operations: Sequence[preprocess.Operation] = (),
  sample: Sample | None = None,
  **options,
) -> str:
  """Writes a SavedModel; the folder appears whole.

  `serving_default` takes `images`, float32 in [0, 255] [batch, height, width,
  3], `serving_uint8` the same as uint8, `serving_bytes` takes `encoded`,
  strings [batch] of JPEG or PNG images. All apply `operations`
  and return `logits` and `probabilities`, float32 [batch, classes], and
  `classes`, the most likely names, [batch]. `features` takes images and returns
  the pooled `features`, float32 [batch, channels].

  Args:
    model: a `Classifier`; its training state is left as it is.
    directory: to be made, such as "serving/1".
    class_names: name of each class, in the order of the logits.
    operations: `preprocess` operations of the evaluation; the last one fixes
      the size. Without any, images are taken at their own size.
    sample: images as `operations` leave them, uint8, and their labels or None,
      to compare both on.
    **options: of an `Exporter`.

  Returns:
    `directory`.

  Raises:
    UserError: if the folder exists, the names do not fit the network, or an
      option cannot be used.
  """
  return Exporter(**options).write(
    model,
    appearing_whole(directory),
    class_names=class_names,
    operations=operations,
    sample=sample,
    about={},
  )


def _check(model: keras.Model, class_names: Sequence[str]) -> None:
  if not hasattr(model, "normalize"):
    raise UserError(
      f"a model of {type(model).__name__} was given to export; expected a"
      " Classifier, which says how images are normalised: put it into one."
    )
  classes = model.network.output_shape[-1]
  if len(class_names) != classes:
    raise UserError(
      f"class_names has {len(class_names)} names, but the network has"
      f" {classes} classes; give one name a class."
    )


def _check_one_of(name: str, value: str, known: Sequence[str]) -> None:
  if value not in known:
    raise UserError(
      f"{name} = {value!r} cannot be exported; expected one of"
      f" {', '.join(map(repr, known))}."
    )
