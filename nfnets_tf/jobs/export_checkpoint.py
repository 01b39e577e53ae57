"""The job that makes a SavedModel of weights that are there already."""

from __future__ import annotations

import os
from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.errors import UserError, require_int
from nfnets_tf.fileio import find_run_dir
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.train import TrainJob
from nfnets_tf.models.weights import InitWeights
from nfnets_tf.train.assembly import compiled_classifier
from nfnets_tf.train.checkpoint_files import newest_in
from nfnets_tf.train.dry_run import describe_network, format_table
from nfnets_tf.train.finish import export_metadata, heldout_sample
from nfnets_tf.train.run_dir import RunDir


class ExportJob:
  """Exports the weights of a checkpoint or a file, for a run's configuration.

  Args:
    training: the run, a `TrainJob`; of it the network, the classifier and the
      held-out split are used.
    checkpoint: whatever `weights.load_weights` reads, with its classifier.
    averaged: whether to take the averages of the weights where there are any.
    export: writes a SavedModel; a `serving.export.Exporter`.
    images: number of held-out images on which the network in training and what
      is exported are compared.
  """

  def __init__(
    self,
    *,
    training: TrainJob,
    checkpoint: str,
    averaged: bool,
    export: Callable[..., str],
    images: int,
  ):
    require_int("export_checkpoint.ExportJob.images", images, 1)
    self.training, self.export = training, export
    self.start = InitWeights(path=checkpoint, keep_head=True, averaged=averaged)
    self.images = images

  def plan(self) -> str:
    """Returns what would be exported."""
    split = self.training.data.heldout_split
    size = split.image_shape()[0]
    lines, _ = describe_network(self.training.model.network, size)
    compared = f"{self.images:,} images of {split.directory}, {split.split}"
    return format_table(
      [*lines, ("weights", self.start.path), ("compared on", compared)]
    )

  def run(self, context: RunContext) -> str:
    """Exports to the next version in WORKDIR/saved_model.

    Nothing else that is in the folder is changed.

    Returns:
      Which weights, and where the SavedModel is.

    Raises:
      UserError: if the weights or the held-out data cannot be used.
    """
    run, files = self.training, RunDir(context.workdir)
    split = run.data.heldout_split
    files.check_writable()
    self.start.check()
    if run.data.prepare is not None:
      run.data.prepare()
    heldout = split.read_info()
    # On this machine's processor and as exactly as it can, whatever the run was
    # trained on: what is compared is the export, not the precision.
    keras.mixed_precision.set_global_policy("float32")
    with tf.device("CPU"):
      classifier = compiled_classifier(
        run.model,
        run.optimization,
        tf.distribute.get_strategy(),
        batch_size=run.data.batch_size,
      )
      self.start(classifier)
      images, labels = heldout_sample(split, heldout, self.images)
      if not len(images):
        raise UserError(
          f"none of the first {self.images:,} images of the"
          f" {split.split!r} split in {split.directory!r} can be used, and what"
          " is exported"
          " is compared on them; bind DATA_DIR to whole shards."
        )
      path = self.export(
        classifier,
        files.saved_models,
        sample=(images, labels),
        **self._known(heldout, context.config_text),
      )
    return format_table([("weights", self.start.path), ("SavedModel", path)])

  def _known(self, heldout: SplitInfo, configuration: str) -> dict:
    """Returns what the exporter is told: of the run, only what is of it."""
    path = os.path.expanduser(self.start.path)
    folder = find_run_dir(path)
    result = (folder and RunDir(folder).read_result()) or {}
    kept = ("step", "heldout_", "ema_heldout_")
    metrics = {name: x for name, x in result.items() if name.startswith(kept)}
    if result.get("step") != _step_of(path):
      metrics = {}
    known = export_metadata(self.training.data, heldout, metrics, configuration)
    if folder is None:  # who knows what these weights have seen
      for name in ("trained on", "training examples"):
        del known["about"]["data"][name]
    return known


def _step_of(path: str) -> int | None:
  """Returns the step of the checkpoint that `load_weights` takes."""
  for folder in (os.path.join(path, "checkpoints"), path):
    path = newest_in(folder) or path
  step = path.rpartition("ckpt-")[2]
  return int(step) if step.isdigit() else None
