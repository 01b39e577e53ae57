"""The job that exports existing weights as a SavedModel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import find_run_dir, latest_checkpoint
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.models.pretrained import Published
from nfnets_tf.models.weights import InitWeights
from nfnets_tf.ranges import PATH, accepts, built, flag, integer, transform
from nfnets_tf.train.dry_run import describe_network, format_table
from nfnets_tf.train.finish import export_metadata, heldout_sample
from nfnets_tf.train.run_dir import RunDir

if TYPE_CHECKING:
  from nfnets_tf.jobs.train import TrainJob


@accepts(
  training=built("@train.TrainJob()"),
  checkpoint=PATH,
  averaged=flag(),
  export=transform("@export.Exporter()"),
  images=integer(1),
)
class ExportJob:
  """Exports the weights of a checkpoint or a file, for a run's configuration.

  Args:
    training: the run, whose network and held-out split are used.
    checkpoint: anything that `load_weights` reads.
    averaged: whether to export the averaged weights, if there are any.
    variant: of the network, for the checkpoint "imagenet".
    published: see `load_weights`.
    export: writes a SavedModel; a `serving.export.Exporter`.
    images: number of held-out images on which the export is compared with the
      network.
  """

  def __init__(
    self,
    *,
    training: TrainJob,
    checkpoint: str,
    averaged: bool,
    export: Callable[..., str],
    images: int,
    variant: str | None = None,
    published: Published | None = None,
  ):
    self.training, self.export = training, export
    self.start = InitWeights(
      path=checkpoint,
      keep_head=True,
      averaged=averaged,
      variant=variant,
      published=published,
    )
    self.images = images

  def plan(self) -> str:
    """Describes what would be exported."""
    split = self.training.data.heldout_split
    size = split.image_shape()[0]
    network = cost.abstractly(self.training.model.network)
    compared = f"{self.images:,} images of {split.directory}, {split.split}"
    return format_table(
      [
        *describe_network(network, size),
        ("weights", self.start.path),
        ("compared on", compared),
      ]
    )

  def run(self, context: RunContext) -> str:
    """Exports to the next version in WORKDIR/saved_model; changes no more.

    Returns:
      The paths of the weights and of the SavedModel.

    Raises:
      UserError: if the weights or the held-out data are invalid.
    """
    run, files = self.training, RunDir(context.workdir)
    split = run.data.heldout_split
    files.check_writable()
    self.start.check()
    if run.data.prepare is not None:
      run.data.prepare()
    heldout = split.read_info()
    # On the CPU in float32, regardless of the training device: the export is
    # compared, not the precision.
    keras.mixed_precision.set_global_policy("float32")
    with tf.device("CPU"):
      classifier = run.build_classifier(tf.distribute.get_strategy())
      self.start(classifier)
      images, labels = heldout_sample(split, heldout, self.images)
      if not len(images):
        raise UserError(
          f"none of the first {self.images:,} images of the {split.split!r}"
          f" split in {split.directory!r} is valid, but the export is compared"
          " on them; bind DATA_DIR to valid shards."
        )
      path = self.export(
        classifier,
        files.saved_models,
        sample=(images, labels),
        **self._metadata(heldout, context.config_text),
      )
    return format_table([("weights", self.start.path), ("SavedModel", path)])

  def _metadata(self, heldout: SplitInfo, config_text: str) -> dict:
    """Returns the export's metadata, without claims about unknown weights."""
    path = self.start.locate()
    folder = find_run_dir(path)
    result = (folder and RunDir(folder).read_result()) or {}
    kept = ("step", "heldout_", "ema_heldout_")
    metrics = {name: x for name, x in result.items() if name.startswith(kept)}
    if result.get("step") != _step_of(path):
      metrics = {}
    metadata = export_metadata(
      self.training.data, heldout, metrics, config_text
    )
    if folder is None:  # weights of unknown training data
      for name in ("trained on", "training examples"):
        del metadata["about"]["data"][name]
    return metadata


def _step_of(path: str) -> int | None:
  """Returns the step of the checkpoint that `load_weights` reads."""
  for folder in (os.path.join(path, "checkpoints"), path):
    path = latest_checkpoint(folder) or path
  step = path.rpartition("ckpt-")[2]
  return int(step) if step.isdigit() else None
