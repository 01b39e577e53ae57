"""What whoever finds a SavedModel has to know, as MODEL_CARD.md beside it."""

from __future__ import annotations

import datetime
import pathlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf
from tensorflow import keras

from nfnets_tf import __version__
from nfnets_tf.data import preprocess
from nfnets_tf.models.nfnet import NFNet

_ROOT = pathlib.Path(__file__).parents[2]

_ANSWERS = (
  "`probabilities` and `logits`, float32 [batch, classes]; `classes`, the most"
  " likely names, [batch]"
)
_SIGNATURES = {
  "serving_default": (
    "`images`, float32 [batch, height, width, 3] in [0, 255]",
    _ANSWERS,
  ),
  "serving_uint8": ("`images`, the same as uint8", "the same"),
  "serving_bytes": (
    "`encoded`, strings [batch]: JPEG, PNG, GIF or BMP, of any sizes",
    "the same",
  ),
  "features": (
    "`images`, float32",
    "`features`, float32 [batch, channels]: the pooled vector",
  ),
}
_USE = """\
Images are resized inside, as in the evaluation. TensorFlow alone is needed:

```python
served = tf.saved_model.load("THIS_FOLDER")
served(images)["classes"]
```
"""


def render(
  network: keras.Model,
  *,
  exported: Mapping[str, str],
  comparisons: Iterable[str],
  class_names: Sequence[str],
  signatures: Iterable[str],
  licence: str | None,
  data: Mapping[str, object] | None = None,
  metrics: Mapping[str, object] | None = None,
  configuration: str | None = None,
) -> str:
  """Returns the card as Markdown.

  Args:
    network: what it is a card of.
    exported: what was exported and how.
    comparisons: lines about its difference from the network in training.
    class_names: in the order of the logits.
    signatures: names of those that it has.
    licence: of the weights, None if it was not stated.
    data: what it was trained and evaluated on, None if unknown.
    metrics: of the evaluation, None if unknown.
    configuration: of the run, None if there was none; it lies beside the card.
  """
  origin = {
    "written": datetime.datetime.now(datetime.timezone.utc).isoformat(
      " ", "seconds"
    ),
    "by": f"nfnets_tf {__version__}, {git_revision()}",
    "TensorFlow": tf.__version__,
    "licence of the weights": licence or "not stated",
    "licence of the code": "Apache 2.0",
  }
  names = ", ".join(class_names[:20])
  if len(class_names) > 20:
    names += ", ..."
  return "\n".join(
    [
      f"# {_title(network)}, {len(class_names):,} classes\n",
      _table(exported),
      "## Use\n",
      _table({f"`{x}`": " -> ".join(_SIGNATURES[x]) for x in signatures}),
      _USE,
      f"{len(class_names):,} classes, all in classes.txt: {names}\n",
      "## Against the network in training\n",
      *(f"- {line}" for line in comparisons),
      "\n## Data\n",
      _table(data),
      "## Metrics\n",
      _table(metrics),
      "## Configuration\n",
      "config.gin beside this file.\n" if configuration else "Not stated.\n",
      "## Origin\n",
      _table(origin),
    ]
  )


def describe_network(
  network: keras.Model, operations: Sequence[preprocess.Operation]
) -> dict[str, str]:
  """Returns the card's lines about a network and its preprocessing.

  Args:
    network: in training.
    operations: of the evaluation.
  """
  names = ", ".join(map(_describe_operation, operations))
  return {
    "architecture": _title(network),
    "parameters": f"{network.count_params():,} in training",
    "preprocessing": names or "none; images are taken at their own size",
  }


def _title(network: keras.Model) -> str:
  if isinstance(network, NFNet):
    return f"NFNet {network.get_config()['variant']}"
  return f"{type(network).__name__} {network.name}"


def _describe_operation(operation: preprocess.Operation) -> str:
  values = ", ".join(f"{x}={y!r}" for x, y in vars(operation).items())
  return f"{type(operation).__name__}({values})"


def _table(rows: Mapping[str, object] | None) -> str:
  if not rows:
    return "Not stated.\n"
  lines = [f"| {name} | {value} |" for name, value in rows.items()]
  return "\n".join(["| | |", "|---|---|", *lines, ""])


def git_revision() -> str:
  """Returns the revision of the code's own checkout, or that it has none."""

  def git(*arguments):
    done = subprocess.run(
      ["git", "-C", str(_ROOT), *arguments],
      capture_output=True,
      text=True,
      check=True,
    )
    return done.stdout.strip()

  try:
    # An installed package may lie within somebody else's checkout.
    if pathlib.Path(git("rev-parse", "--show-toplevel")) != _ROOT.resolve():
      return "not in a git checkout"
    changed = git("status", "--porcelain", "--untracked-files=no")
    revision = git("rev-parse", "HEAD")
  except (OSError, subprocess.CalledProcessError):
    return "not in a git checkout"
  return f"git revision {revision}{', with changes' if changed else ''}"
