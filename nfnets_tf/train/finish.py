"""Finishes a run: SavedModel, report, curves, result and summary."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from nfnets_tf.fileio import checkpoint_path, read_bytes
from nfnets_tf.train.dry_run import format_table
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_log import MetricsLog, draw_curves, read_records

if TYPE_CHECKING:
  from nfnets_tf.data.dataset_info import SplitInfo
  from nfnets_tf.data.pipeline import Split
  from nfnets_tf.train.checkpointing import Checkpointer
  from nfnets_tf.train.classifier import Classifier
  from nfnets_tf.train.run_config import DataConfig

LOGGER = logging.getLogger("nfnets_tf")

_SAVED_IMAGES = 8  # to try the SavedModel with
_VERIFIED_IMAGES = 64  # on which the export is compared with the network
_SAMPLE_BATCH = 64


def finish_run(
  files: RunDir,
  classifier: Classifier,
  heldout: SplitInfo,
  checkpoints: Checkpointer,
  log: MetricsLog,
  record: dict,
  *,
  variant: str,
  data: DataConfig,
  export: Callable[..., str] | None,
  report: Callable[..., object] | None,
) -> None:
  """Exports, reports, draws curves, and marks the run as finished.

  The report is on the averaged weights if there are any, as the export is.

  Args:
    files: of the run.
    classifier: trained; its state is left unchanged.
    heldout: the held-out split.
    checkpoints: the latest of which is written.
    log: receives the final record.
    record: metrics of the last evaluation; the weights' digests are added.
    variant: name of the network's size.
    data: the run's data.
    export: writes a SavedModel, or None.
    report: writes a classification report, or None.
  """
  _report_invalid_records(data)
  record.update(_digests(classifier))
  _write_report(report, data, files, classifier, heldout)
  sample = heldout_sample(data.heldout_split, heldout, _VERIFIED_IMAGES)
  _save_images(files.sample, sample[0][:_SAVED_IMAGES])
  saved_model = export and export(
    classifier,
    files.saved_models,
    sample=sample if len(sample[0]) else None,
    **export_metadata(data, heldout, record, _read_config(files)),
  )
  log.write(checkpoints.step, record)
  title = f"NFNet {variant}, {checkpoints.step:,} steps"
  draw_curves(read_records(files.metrics), files.curves, title=title)
  best_step = checkpoints.best["step"]
  result = {
    "variant": variant,
    "step": checkpoints.step,
    "heldout_examples": heldout.num_examples,
    "checkpoint": checkpoints.latest,
    "best_step": best_step,
    "best_checkpoint": checkpoint_path(files.checkpoints, best_step),
    "saved_model": saved_model,
  }
  files.write_result({**result, **record})


def _digests(classifier: Classifier) -> dict[str, str]:
  weights = classifier.network.trainable_variables
  digests = {"weights_sha256": weights_sha256(weights)}
  if classifier.averages:
    digests["ema_weights_sha256"] = weights_sha256(classifier.averages)
  return digests


def _report_invalid_records(data: DataConfig) -> None:
  for split in (data.train_split, data.heldout_split):
    if split.invalid_records.collect():
      LOGGER.warning(
        "Skipped records of the %r split, by cause: %s.",
        split.split,
        split.invalid_records,
      )


def _write_report(report, data, files, classifier, heldout) -> None:
  if report is None:
    return
  averaged = bool(classifier.averages)
  with classifier.averaged() if averaged else nullcontext():
    report(
      classifier,
      data.heldout_split,
      heldout,
      files.report,
      class_names=_class_names(heldout, data.num_classes),
      batch_size=data.batch_size,
    )


def _save_images(path: str, images: np.ndarray) -> None:
  with tf.io.gfile.GFile(path, "wb") as file:
    np.save(file, images)


def _read_config(files: RunDir) -> str | None:
  """Returns the run's gin file; a run started from Python has none."""
  if not tf.io.gfile.exists(files.config):
    return None
  return read_bytes(files.config).decode()


def _class_names(heldout: SplitInfo, num_classes: int) -> list[str]:
  """Returns a name for each class, its number where the data have none."""
  return list(heldout.class_names or map(str, range(num_classes)))


def export_metadata(
  data: DataConfig,
  heldout: SplitInfo,
  metrics: dict[str, float],
  config_text: str | None,
) -> dict:
  """Returns the arguments of an exporter that describe a run.

  Args:
    data: the run's data.
    heldout: its held-out split.
    metrics: for the model card.
    config_text: of the run's gin file, or None.

  Returns:
    {"class_names", "transforms", "about"} of `serving.export.Exporter`.
  """
  splits = {"trained on": data.train_split, "evaluated on": data.heldout_split}
  sources = {name: f"{x.directory}, {x.split}" for name, x in splits.items()}
  sources["training examples"] = f"{data.num_examples:,}"
  sources["held-out examples"] = f"{heldout.num_examples:,}"
  return {
    "class_names": _class_names(heldout, data.num_classes),
    "transforms": data.heldout_split.transforms,
    "about": {
      "data": sources,
      "metrics": metrics,
      "configuration": config_text,
    },
  }


def heldout_sample(
  split: Split, info: SplitInfo, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first images of a split, preprocessed, and their labels.

  Args:
    split: of the held-out data.
    info: of the split.
    count: maximum number of records to read; invalid ones are skipped.

  Returns:
    uint8 [images, height, width, 3] and integers [images].
  """
  count = min(count, info.num_examples)
  size = min(count, _SAMPLE_BATCH)
  batches = split.evaluation_batches(info, host_batch=size, replicas=1)
  arrays = zip(*batches.take(-(-count // size)).as_numpy_iterator())
  images, labels, weights = (np.concatenate(x)[:count] for x in arrays)
  return images[weights > 0], labels[weights > 0]


def summarize(result: dict, files: RunDir) -> str:
  """Returns the summary that is printed at the end of a run.

  Args:
    result: of `RunDir.read_result`.
    files: of the run.
  """
  lines = [
    ("run", f"NFNet {result['variant']}, {result['step']:,} steps, finished"),
    ("held-out top-1", _accuracy(result, "top1")),
    ("held-out top-5", _accuracy(result, "top5")),
    ("weights", f"sha256 {result['weights_sha256']}"),
  ]
  if "ema_weights_sha256" in result:
    lines.append(("averaged", f"sha256 {result['ema_weights_sha256']}"))
  lines += [
    ("checkpoint", result["checkpoint"]),
    ("best", result["best_checkpoint"]),
    ("SavedModel", result["saved_model"] or "none"),
    ("TensorBoard", files.tensorboard),
    ("metrics", files.metrics),
    ("configuration", files.config),
    ("curves", files.curves),
  ]
  if tf.io.gfile.exists(files.report):
    lines.append(("report", files.report))
  if result["saved_model"]:
    command = (
      f"saved_model_cli run --dir {result['saved_model']} --tag_set serve"
      f" --signature_def serving_default --inputs images={files.sample}"
    )
    lines.append(("serve it", command))
  return format_table(lines)


def _accuracy(result: dict, name: str) -> str:
  text = f"{result[f'heldout_{name}']:.2%}"
  if f"ema_heldout_{name}" in result:
    text += f" raw, {result[f'ema_heldout_{name}']:.2%} averaged weights"
  return f"{text}, of {result['heldout_examples']:,} images"


def weights_sha256(variables: Iterable[tf.Variable]) -> str:
  """Returns the SHA-256, in hexadecimal digits, of the variables' bytes."""
  digest = hashlib.sha256()
  for variable in variables:
    digest.update(variable.numpy().tobytes())
  return digest.hexdigest()
