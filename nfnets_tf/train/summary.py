"""The last words of a run: how good, where everything lies, what next."""

import tensorflow as tf

from nfnets_tf.train.plan import table
from nfnets_tf.train.run_dir import RunDir


def summarize(result: dict, files: RunDir) -> str:
  """Returns the summary of a finished run.

  Args:
    result: what `RunDir.write_result` was given.
    files: the run's files.
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
    lines.append(
      (
        "serve it",
        f"saved_model_cli run --dir {result['saved_model']} --tag_set serve"
        f" --signature_def serving_default --inputs images={files.sample}",
      )
    )
  return table(lines)


def _accuracy(result: dict, name: str) -> str:
  text = f"{result[f'heldout_{name}']:.2%}"
  if f"ema_heldout_{name}" in result:
    text += f" raw, {result[f'ema_heldout_{name}']:.2%} averaged weights"
  return f"{text}, of {result['heldout_examples']:,} images"
