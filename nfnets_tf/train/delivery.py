"""What a finished run hands out: SavedModel, report, picture, result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import tensorflow as tf

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.fileio import read_bytes
from nfnets_tf.train.checkpoint_files import path_of
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.provenance import class_names, known_of
from nfnets_tf.train.run_config import DataConfig
from nfnets_tf.train.run_dir import RunDir, weights_sha256
from nfnets_tf.train.run_log import MetricsLog, draw_curves, read_records
from nfnets_tf.train.samples import heldout_sample

LOGGER = logging.getLogger("nfnets_tf")

_SAMPLE_SIZE, _COMPARED = 8, 64


def deliver(
  files: RunDir,
  classifier: Classifier,
  heldout: SplitInfo,
  checkpoints: Checkpoints,
  log: MetricsLog,
  record: dict,
  *,
  variant: str,
  data: DataConfig,
  export: Callable[..., str] | None,
  report: Callable[..., object] | None,
) -> None:
  """Exports, reports, draws, and marks the run as done.

  What is reported on are the averages of the weights, where there are any.

  Args:
    files: where everything is written.
    classifier: trained; its state is left as it is.
    heldout: index of the held-out split.
    checkpoints: the last of which is written.
    log: takes the closing record.
    record: the last evaluation.
    variant: name of the network's size.
    data: the run's data.
    export: writes a SavedModel, or None.
    report: writes a classification report, or None.
  """
  _tell_faults(data)
  network = classifier.network
  record["weights_sha256"] = weights_sha256(network.trainable_variables)
  if classifier.averages:
    record["ema_weights_sha256"] = weights_sha256(classifier.averages)
  if report is not None:
    _report(report, data, files, classifier, heldout)
  sample = heldout_sample(data.heldout_split, heldout, _COMPARED)
  _save_sample(files, sample[0][:_SAMPLE_SIZE])
  saved_model = None
  if export is not None:
    saved_model = export(
      classifier,
      files.saved_models,
      sample=sample if len(sample[0]) else None,
      **known_of(data, heldout, record, _configuration(files)),
    )
  log.write(checkpoints.step, record)
  draw_curves(
    read_records(files.metrics),
    files.curves,
    title=f"NFNet {variant}, {checkpoints.step:,} steps",
  )
  best = checkpoints.best
  files.write_result(
    {
      "variant": variant,
      "step": checkpoints.step,
      "heldout_examples": heldout.num_examples,
      "checkpoint": checkpoints.latest,
      "best_step": best["step"],
      "best_checkpoint": path_of(files.checkpoints, best["step"]),
      "saved_model": saved_model,
      **record,
    }
  )


def _tell_faults(data) -> None:
  for split in (data.train_split, data.heldout_split):
    if split.faults.collect():
      LOGGER.warning(
        "Left out of the %r split, by cause: %s.", split.split, split.faults
      )


def _report(report, data, files, classifier, heldout) -> None:
  averaged = bool(classifier.averages)
  with classifier.averaged() if averaged else nullcontext():
    report(
      classifier,
      data.heldout_split,
      heldout,
      files.report,
      class_names=class_names(heldout, data.num_classes),
      batch_size=data.batch_size,
    )


def _save_sample(files, images: np.ndarray) -> None:
  """Keeps a few held-out images, to try the SavedModel with."""
  with tf.io.gfile.GFile(files.sample, "wb") as file:
    np.save(file, images)


def _configuration(files) -> str | None:
  """Returns the run's gin file; a run by hand may have none."""
  if not tf.io.gfile.exists(files.config):
    return None
  return read_bytes(files.config).decode()
