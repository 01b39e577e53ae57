"""Finishes a run: SavedModel, report, curves, result and summary."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shlex
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from nfnets_tf.errors import plain_message
from nfnets_tf.fileio import checkpoint_path, write_atomically
from nfnets_tf.models.sparse_kernels import count_zeros, sparse_convolutions
from nfnets_tf.train.dry_run import format_table
from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.run_log import draw_curves

if TYPE_CHECKING:
  from nfnets_tf.data.dataset_info import SplitInfo
  from nfnets_tf.data.pipeline import Split
  from nfnets_tf.train.checkpointing import Checkpointer
  from nfnets_tf.train.classifier import Classifier
  from nfnets_tf.train.loop import Trainer
  from nfnets_tf.train.run_config import DataConfig

LOGGER = logging.getLogger("nfnets_tf")

_SAVED_IMAGES = 8  # to try the SavedModel with
_VERIFIED_IMAGES = 64  # on which the export is compared with the network
_SAMPLE_BATCH = 64


def finish_run(
  trainer: Trainer,
  files: RunDir,
  record: dict,
  *,
  variant: str,
  data: DataConfig,
  export: Callable[..., str] | None,
  report: Callable[..., object] | None,
) -> None:
  """Exports, reports, draws curves, and marks the run as finished.

  The report is on the averaged weights if there are any, as the export is. The
  metrics of the last evaluation, `record`, and the weights' digests are logged.
  A report, curves or sample images that fail are logged, named in the result,
  and cost nothing else.
  """
  model, checkpoints = trainer.classifier, trainer.checkpoints
  heldout = trainer.inputs.heldout_info
  _report_invalid_records(data)
  record.update(_digests(model))
  sample = heldout_sample(data.heldout_split, heldout, _VERIFIED_IMAGES)
  saved_model = export and export(
    model,
    files.saved_models,
    sample=sample if len(sample[0]) else None,
    **export_metadata(data, heldout, record, files.read_config()),
  )
  trainer.log.write(checkpoints.step, record)
  title = f"NFNet {variant}, {checkpoints.step:,} steps"
  failures = _call_all(
    {
      "report": lambda: _write_report(report, data, files, model, heldout),
      "curves": lambda: draw_curves(files, title=title),
      "sample": lambda: _write_sample(files.sample, sample[0]),
    }
  )
  result = {
    "variant": variant,
    "heldout_examples": heldout.num_examples,
    **_describe_checkpoints(checkpoints, files),
    "saved_model": saved_model,
    **record,
    **_describe_zeros(model),
    **({"failed": failures} if failures else {}),
  }
  files.write_result(result)


def _digests(model: Classifier) -> dict[str, str]:
  """Returns the SHA-256 of the weights, and of their averages if any."""
  variables = model.network.trainable_variables
  digests = {"weights_sha256": weights_sha256(variables)}
  if model.averages:
    digests["ema_weights_sha256"] = weights_sha256(model.averages)
  return digests


def _describe_checkpoints(checkpoints: Checkpointer, files: RunDir) -> dict:
  best_step = checkpoints.best["step"]
  return {
    "step": checkpoints.step,
    "checkpoint": checkpoints.latest,
    "best_step": best_step,
    "best_checkpoint": checkpoint_path(files.checkpoints, best_step),
  }


def _describe_zeros(model: Classifier) -> dict[str, int]:
  if not sparse_convolutions(model.network):
    return {}
  parameters = model.network.count_params()
  return {"nonzero_parameters": parameters - count_zeros(model.network)}


def _call_all(functions: dict[str, Callable[[], None]]) -> dict[str, str]:
  """Calls functions that a run can do without; returns {name: error}."""
  failures = {}
  for name, function in functions.items():
    try:
      function()
    except Exception as error:
      kind = type(error).__name__
      failures[name] = f"{kind}: {plain_message(error)}"
      traceback.print_exc()  # to the log
      LOGGER.warning(
        "The %s of this run could not be written (%s); all else is complete:"
        " to try again, remove result.json and rerun the same command, which"
        " evaluates and exports once more.",
        name,
        failures[name],
      )
  return failures


def _write_sample(path: str, images: np.ndarray) -> None:
  buffer = io.BytesIO()
  np.save(buffer, images[:_SAVED_IMAGES])
  write_atomically(path, buffer.getvalue())


def _report_invalid_records(data: DataConfig) -> None:
  for split in (data.train_split, data.heldout_split):
    if split.invalid_records.collect():
      LOGGER.warning(
        "Skipped records of the %r split, by cause: %s.",
        split.split,
        split.invalid_records,
      )


def _write_report(report, data, files, model, heldout) -> None:
  if report is None:
    return
  with model.averaged() if model.averages else nullcontext():
    report(
      model,
      data.heldout_split,
      heldout,
      files.report,
      class_names=_class_names(heldout, data.num_classes),
      batch_size=data.batch_size,
    )


def _class_names(heldout: SplitInfo, num_classes: int) -> list[str]:
  return list(heldout.class_names or map(str, range(num_classes)))


def export_metadata(
  data: DataConfig,
  heldout: SplitInfo,
  metrics: dict[str, float],
  config_text: str | None,
) -> dict:
  """Returns the arguments of an exporter that describe a run.

  These are class_names, transforms and about of `serving.export.Exporter`.
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
  """Returns the summary of a result (`RunDir.read_result`)."""
  lines = [
    ("run", f"NFNet {result['variant']}, {result['step']:,} steps, finished"),
    ("held-out top-1", _accuracy(result, "top1")),
    ("held-out top-5", _accuracy(result, "top5")),
    ("weights", f"sha256 {result['weights_sha256']}"),
  ]
  if "nonzero_parameters" in result:
    lines.append(("not zero", f"{result['nonzero_parameters']:,} parameters"))
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
    lines.append(("serve it", _serving_command(result["saved_model"], files)))
  for name, error in result.get("failed", {}).items():
    lines.append((f"no {name}", error))
  return format_table(lines)


def _serving_command(saved_model: str, files: RunDir) -> str:
  """Returns a shell command that runs the SavedModel on the sample images."""
  before, folder, sample = "", saved_model, f"images={files.sample}"
  if ";" in sample:  # the tool would take what follows for another input
    before = f"cd {shlex.quote(files.root)} && "
    folder = os.path.relpath(saved_model, files.root)
    sample = f"images={os.path.basename(files.sample)}"
  if folder.startswith("-"):
    folder = f"./{folder}"
  return (
    f"{before}saved_model_cli run --dir {shlex.quote(folder)} --tag_set serve"
    f" --signature_def serving_default --inputs {shlex.quote(sample)}"
  )


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
