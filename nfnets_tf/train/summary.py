"""The last words of a run: how good, where everything lies, what next."""

from nfnets_tf.train.plan import table
from nfnets_tf.train.workdir import Workdir


def summarize(result: dict, files: Workdir) -> str:
  """Returns the summary of a finished run.

  Args:
    result: what `Workdir.write_result` was given.
    files: the run's files.
  """
  lines = [
    ("run", f"NFNet {result['variant']}, {result['step']:,} steps, finished"),
    ("held-out top-1", _accuracy(result)),
    ("weights", f"sha256 {result['weights_sha256']}"),
  ]
  if "ema_weights_sha256" in result:
    lines.append(("averaged", f"sha256 {result['ema_weights_sha256']}"))
  lines += [
    ("checkpoint", result["checkpoint"]),
    ("SavedModel", result["saved_model"]),
    ("TensorBoard", files.tensorboard),
    ("metrics", files.metrics),
    ("configuration", files.config),
    ("curves", files.curves),
    (
      "serve it",
      f"saved_model_cli run --dir {result['saved_model']} --tag_set serve"
      f" --signature_def serving_default --inputs images={files.sample}",
    ),
  ]
  return table(lines)


def _accuracy(result: dict) -> str:
  text = f"{result['heldout_top1']:.2%}"
  if "ema_heldout_top1" in result:
    text += f" raw, {result['ema_heldout_top1']:.2%} averaged weights"
  return f"{text}, of {result['heldout_examples']:,} images"
