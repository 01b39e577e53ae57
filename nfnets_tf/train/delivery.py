"""What a finished run hands out: SavedModel, report, picture, result."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np
import tensorflow as tf

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.train.checkpoint_files import path_of
from nfnets_tf.train.checkpoints import Checkpoints
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.curves import draw_curves
from nfnets_tf.train.metrics_log import MetricsLog, read_records
from nfnets_tf.train.workdir import Workdir, weights_sha256

LOGGER = logging.getLogger("nfnets_tf")

_SAMPLE_SIZE = 8


def deliver(
  job,
  files: Workdir,
  classifier: Classifier,
  heldout: SplitIndex,
  checkpoints: Checkpoints,
  log: MetricsLog,
  record: dict,
) -> None:
  """Exports, reports, draws, and marks the run as done.

  What is exported are the averages of the weights, where there are any.

  Args:
    job: the `run.Training`.
    files: where everything is written.
    classifier: trained; its state is left as it is.
    heldout: index of the held-out split.
    checkpoints: the last of which is written.
    log: takes the closing record.
    record: the last evaluation.
  """
  _tell_faults(job)
  network = classifier.network
  record["weights_sha256"] = weights_sha256(network.trainable_variables)
  if classifier.averages:
    record["ema_weights_sha256"] = weights_sha256(classifier.averages)
  saved_model = _export(job, files, classifier, heldout)
  _save_sample(job, files, heldout)
  log.write(checkpoints.step, record)
  draw_curves(
    read_records(files.metrics),
    files.curves,
    title=f"NFNet {job.variant}, {checkpoints.step:,} steps",
  )
  best = checkpoints.best
  files.write_result(
    {
      "variant": job.variant,
      "step": checkpoints.step,
      "heldout_examples": heldout.num_examples,
      "checkpoint": checkpoints.latest,
      "best_step": best["step"],
      "best_checkpoint": path_of(files.checkpoints, best["step"]),
      "saved_model": saved_model,
      **record,
    }
  )


def _tell_faults(job) -> None:
  for split in (job.train_split, job.heldout_split):
    if split.faults.collect():
      LOGGER.warning(
        "Left out of the %r split, by cause: %s.", split.split, split.faults
      )


def _export(job, files, classifier, heldout) -> str | None:
  names = list(heldout.class_names or map(str, range(job.num_classes)))
  averaged = bool(classifier.averages)
  if job.report is not None:
    with classifier.averaged() if averaged else nullcontext():
      job.report(
        classifier,
        job.heldout_split,
        heldout,
        files.report,
        class_names=names,
        batch_size=job.batch_size,
      )
  if job.export is None:
    return None
  return job.export(
    classifier,
    files.saved_models,
    class_names=names,
    operations=job.heldout_split.operations,
    averaged=averaged,
  )


def _save_sample(job, files, heldout) -> None:
  """Keeps a few held-out images, to try the SavedModel with."""
  batches = job.heldout_split.evaluation_batches(
    heldout, host_batch=_SAMPLE_SIZE, replicas=1
  )
  images, *_ = next(iter(batches))
  with tf.io.gfile.GFile(files.sample, "wb") as file:
    np.save(file, images[: heldout.num_examples].numpy())
