"""Exports a trained classifier as a SavedModel that needs only TensorFlow."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.errors import UserError, refuse_keras3
from nfnets_tf.fileio import write_atomically
from nfnets_tf.ranges import TEXT, accepts, flag, one_of, optional
from nfnets_tf.serving import converters, model_card
from nfnets_tf.serving.folding import DTYPES, TARGETS, inference_network
from nfnets_tf.serving.signatures import ServingModule
from nfnets_tf.serving.versioning import (
  PendingDirectory,
  create_directory,
  create_next_version,
)
from nfnets_tf.train.classifier import Classifier

LOGGER = logging.getLogger("nfnets_tf")

# Preprocessed images, uint8 [images, height, width, 3], and labels or None.
Sample = tuple[np.ndarray, "np.ndarray | None"]


@accepts(
  license=optional(TEXT),
  fold=flag(),
  dtype=one_of(*DTYPES),
  target=one_of(*TARGETS),
  averaged=flag(),
)
class Exporter:
  """Writes SavedModels: plain convolutions, four signatures, a model card.

  Args:
    fold: whether to fold an NFNet's standardization, gains and scales into its
      kernels. An unfolded SavedModel has the weights of training, which
      `load_weights` can read. Other networks are never folded.
    dtype: of a folded network's computation, "float32" or "bfloat16" (for CPUs
      with AVX512 and for accelerators). Outputs are float32.
    target: device that a folded network is optimized for, "cpu" or
      "accelerator"; it runs on both.
    averaged: whether to export the averaged weights, where there are any,
      instead of the raw ones.
    formats: additional files for other runtimes, out of `converters.FILES`.
    license: of the weights, for the model card; None if not stated.

  Raises:
    UserError: if an argument is out of range.
  """

  def __init__(
    self,
    *,
    fold: bool = True,
    dtype: str = "float32",
    target: str = "cpu",
    averaged: bool = True,
    formats: Sequence[str] = (),
    license: str | None = None,
  ):
    if not fold and dtype != "float32":
      raise UserError(
        f"dtype = {dtype!r} needs a folded network; use fold=True, or"
        " dtype='float32'."
      )
    converters.check_formats(formats)
    self.fold, self.dtype, self.target = fold, dtype, target
    self.averaged, self.formats = averaged, tuple(formats)
    self.license = license

  def __call__(self, model: Classifier, directory: str, **contents) -> str:
    """Exports to the next of directory/1, directory/2, ...

    Args:
      model: to export; its state does not change.
      directory: of the versions, as TensorFlow Serving expects them.
      **contents: see `write`.

    Returns:
      The path of the new version.
    """
    return self.write(model, create_next_version(directory), **contents)

  def write(
    self,
    model: Classifier,
    place: contextlib.AbstractContextManager[PendingDirectory],
    *,
    class_names: Sequence[str],
    transforms: Sequence[preprocessing.Transform],
    sample: Sample | None = None,
    about: Mapping[str, object] | None = None,
  ) -> str:
    """Exports to a directory that becomes visible when it is complete.

    Args:
      model: to export; its state does not change.
      place: out of `versioning`.
      class_names: name of each class, in the order of the logits.
      transforms: `preprocessing` transforms of the evaluation.
      sample: preprocessed images and their labels, on which every exported form
        is compared with the network in training.
      about: for the model card: `data` and `metrics`, {name: value}, and
        `configuration`, the text of a gin file.

    Returns:
      The path of the directory.

    Raises:
      UserError: if the names do not fit the network, or a format lacks a
        sample.
    """
    _check_inputs(model, class_names, self.formats, sample)
    averaged = bool(self.averaged and model.averages)
    weights = model.averaged() if averaged else contextlib.nullcontext()
    about = dict(about or {})
    with place as pending:
      # Export on the host: the accelerator's memory may be full.
      with tf.device("CPU"), weights:
        form, signatures, comparisons = self._write_models(
          pending.folder, model, class_names, transforms, sample
        )
      card = model_card.render(
        model.network,
        transforms=transforms,
        form=form,
        weights="averaged" if averaged else "raw",
        comparisons=comparisons or ["Not compared: no images were given."],
        class_names=class_names,
        signatures=signatures,
        license_name=self.license,
        **about,
      )
      texts = {"MODEL_CARD.md": card, "config.gin": about.get("configuration")}
      texts["classes.txt"] = _class_lines(class_names)
      for name, text in texts.items():
        if text:
          write_atomically(os.path.join(pending.folder, name), text)
    for line in [f"Exported {pending.path}", *(f"  {x}" for x in comparisons)]:
      LOGGER.info("%s.", line)
    return pending.path

  def _write_models(self, folder, model, class_names, transforms, sample):
    """Writes the SavedModel and the files for other runtimes.

    Returns:
      The form of the network, the names of the signatures, and a line for each
      form about its outputs.
    """
    network, tracked = inference_network(
      model, fold=self.fold, dtype=self.dtype, target=self.target
    )
    module = ServingModule(network, class_names, transforms, **tracked)
    signatures = module.signatures()
    tf.saved_model.save(module, folder, signatures)
    folded = "folded" in tracked
    form = f"folded, {self.dtype}" if folded else "as in training"
    if sample is None:
      return form, signatures, []
    verifier = converters.ExportVerifier(model, *sample)
    lines = [verifier.verify_saved_model(folder)]
    for file_format in self.formats:
      # Other runtimes fuse a GELU on their own.
      network, tracked = inference_network(
        model, fold=self.fold, dtype="float32", target="accelerator"
      )
      owner = tf.Module()
      owner.tracked = tracked
      lines.append(
        verifier.convert_and_verify(file_format, folder, network, owner)
      )
    return form, signatures, lines


def export_saved_model(
  model: Classifier,
  directory: str,
  *,
  class_names: Sequence[str],
  transforms: Sequence[preprocessing.Transform] = (),
  sample: Sample | None = None,
  **options,
) -> str:
  """Writes a SavedModel; the directory becomes visible when it is complete.

  Signatures: `serving_default` takes `images`, float32 in [0, 255] [batch,
  height, width, 3]; `serving_uint8` the same as uint8; `serving_bytes` takes
  `encoded`, strings [batch] of JPEG or PNG images. All apply `transforms` and
  return `logits` and `probabilities`, float32 [batch, classes], and `classes`,
  the most likely names, [batch]. `features` takes images and returns the pooled
  `features`, float32 [batch, channels].

  Args:
    model: to export; its training state does not change.
    directory: to create, such as "serving/1".
    class_names: name of each class, in the order of the logits.
    transforms: `preprocessing` transforms of the evaluation; the last one sets
      the size. Without any, images keep their size.
    sample: preprocessed images, uint8 [images, height, width, 3], and labels or
      None, to compare the SavedModel with the network in training.
    **options: of `Exporter`.

  Returns:
    `directory`.

  Raises:
    UserError: if the directory exists, the names do not fit the network, or an
      option is out of range.
  """
  return Exporter(**options).write(
    model,
    create_directory(directory),
    class_names=class_names,
    transforms=transforms,
    sample=sample,
  )


def _class_lines(class_names: Sequence[str]) -> str:
  """Returns a line for each class, also if its name has several."""
  return "".join(f"{' '.join(name.splitlines())}\n" for name in class_names)


def _check_inputs(model, class_names, formats, sample) -> None:
  refuse_keras3("export_saved_model", model)
  if not isinstance(model, Classifier):
    raise UserError(
      f"a {type(model).__name__} was given to export; expected a Classifier,"
      " which defines the normalization of images: wrap the model in one."
    )
  classes = model.network.output_shape[-1]
  if len(class_names) != classes:
    raise UserError(
      f"class_names has {len(class_names)} names for {classes} classes; give"
      " one name per class."
    )
  if formats and sample is None:
    raise UserError(
      f"no sample was given for the formats {', '.join(formats)}; expected"
      " images to verify them on."
    )
