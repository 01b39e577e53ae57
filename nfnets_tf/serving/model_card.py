"""Renders MODEL_CARD.md for an exported SavedModel."""

from __future__ import annotations

import datetime
import pathlib
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from nfnets_tf import __version__
from nfnets_tf.data import preprocessing
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.sparse_kernels import count_zeros

_ROOT = pathlib.Path(__file__).parents[2]

_OUTPUTS = (
  "`probabilities` and `logits`, float32 [batch, classes]; `classes`, the most"
  " likely names, [batch]"
)
_SIGNATURES = {
  "serving_default": (
    f"`images`, float32 [batch, height, width, 3] in [0, 255] -> {_OUTPUTS}"
  ),
  "serving_uint8": "`images`, the same as uint8 -> the same",
  "serving_bytes": (
    "`encoded`, strings [batch]: JPEG, PNG, GIF or BMP of any size -> the same"
  ),
  "features": (
    "`images`, float32 -> `features`, float32 [batch, channels]: the pooled"
    " vector"
  ),
}
_CARD = """\
# {title}, {num_classes:,} classes

{exported}
## Use

{signatures}
Images are resized inside, as in evaluation. Only TensorFlow is needed:

```python
served = tf.saved_model.load("THIS_FOLDER")
served(images)["classes"]
```

{num_classes:,} classes, all in classes.txt: {class_names}

## Compared with the network in training

{comparisons}

## Data

{data}
## Metrics

{metrics}
## Configuration

{configuration}

## Origin

{origin}"""


def render(
  network: keras.Model,
  *,
  transforms: Sequence[preprocessing.Transform],
  form: str,
  weights: str,
  comparisons: Iterable[str],
  class_names: Sequence[str],
  signatures: Iterable[str],
  license_name: str | None,
  data: Mapping[str, object] | None = None,
  metrics: Mapping[str, object] | None = None,
  configuration: str | None = None,
) -> str:
  """Returns the card as Markdown.

  Args:
    network: in training.
    transforms: of the evaluation.
    form: of the exported network, such as "folded, float32".
    weights: "averaged" or "raw".
    comparisons: a line for each form, compared with the network in training.
    class_names: in the order of the logits.
    signatures: names of the SavedModel's signatures.
    license_name: of the weights, None if not stated.
    data: the training and evaluation data, None if unknown.
    metrics: of the evaluation, None if unknown.
    configuration: of the run, None without one; it is next to the card.
  """
  title = f"{type(network).__name__} {network.name}"
  if isinstance(network, NFNet):
    title = f"NFNet {network.get_config()['variant']}"
  steps = ", ".join(map(_describe_transform, transforms))
  return _CARD.format(
    title=title,
    num_classes=len(class_names),
    exported=_table(
      {
        "architecture": title,
        "parameters": _describe_parameters(network),
        "preprocessing": steps or "none; images keep their size",
        "form": form,
        "weights": weights,
      }
    ),
    signatures=_table({f"`{x}`": _SIGNATURES[x] for x in signatures}),
    class_names=", ".join(map(_escape, class_names[:20]))
    + (", ..." if len(class_names) > 20 else ""),
    comparisons="\n".join(f"- {line}" for line in comparisons),
    data=_escaped_table(data),
    metrics=_escaped_table(metrics),
    configuration="See config.gin." if configuration else "Not stated.",
    origin=_table(_describe_origin(license_name)),
  )


def _describe_origin(license_name: str | None) -> dict[str, str]:
  now = datetime.datetime.now(datetime.timezone.utc)
  return {
    "written": now.isoformat(" ", "seconds"),
    "by": f"nfnets_tf {__version__}, {git_revision()}",
    "TensorFlow": tf.__version__,
    "license of the weights": license_name or "not stated",
    "license of the code": "Apache 2.0",
  }


def _describe_parameters(network: keras.Model) -> str:
  parameters, zeros = network.count_params(), count_zeros(network)
  left = f", {parameters - zeros:,} of them not zero" if zeros else ""
  return f"{parameters:,} in training{left}"


def _describe_transform(transform: preprocessing.Transform) -> str:
  values = ", ".join(f"{x}={y!r}" for x, y in vars(transform).items())
  return f"{type(transform).__name__}({values})"


def _escape(text: object) -> str:
  """Returns text, on one line, in which Markdown sees no markup."""
  return re.sub(r"([\\`*\[\]<>|$~])", r"\\\1", " ".join(str(text).split()))


def _escaped_table(rows: Mapping[str, object] | None) -> str:
  return _table({x: _escape(y) for x, y in (rows or {}).items()})


def _table(rows: Mapping[str, object] | None) -> str:
  if not rows:
    return "Not stated.\n"
  lines = [f"| {name} | {value} |" for name, value in rows.items()]
  return "\n".join(["| | |", "|---|---|", *lines, ""])


def git_revision() -> str:
  """Returns the revision of this package's own checkout, if there is one."""

  def git(*arguments):
    command = ["git", "-C", str(_ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  try:
    # An installed package may be within another project's checkout.
    if pathlib.Path(git("rev-parse", "--show-toplevel")) == _ROOT.resolve():
      options = "--always", "--exclude=*", "--abbrev=40"
      revision = git("describe", *options, "--dirty=, with changes")
      return f"git revision {revision}"
  except (OSError, subprocess.CalledProcessError):
    pass
  return "not in a git checkout"
