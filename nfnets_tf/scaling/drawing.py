"""What the pictures of a study share: axes, the models' looks, files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nfnets_tf.fileio import report_write_errors

_MARKERS = "osD^vPXph<>"
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_FEW = 10  # values that each get a tick of their own
_MOST_TICKS = 10

LABELS = {
  "flops": "training FLOPs",
  "tpu_v4_core_hours": "TPU-v4 core-hours",
  "heldout_loss": "held-out loss (nats)",
  "loss": "loss (nats)",
  "macs": "MACs of one image's forward pass",
  "parameters": "parameters",
  "EPOCHS": "epochs",
  "PEAK_LR": "peak learning rate",
}


def label(name: str) -> str:
  """Returns what an axis says of a column of this name, with its unit."""
  return LABELS.get(name, name)


@contextlib.contextmanager
def picture(
  path: str, *, width: float, height: float, columns: int = 1
) -> Iterator[Sequence]:
  """Gives the axes of a new figure, and writes it as a PNG at the end.

  Args:
    path: of the picture, local or gs://.
    width: in inches.
    height: in inches.
    columns: number of axes, side by side.
  """
  style = {
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "font.size": 11,
    "legend.fontsize": 9.5,
    "legend.framealpha": 0.9,
  }
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.subplots(1, columns, squeeze=False)[0]
    with report_write_errors(path), tf.io.gfile.GFile(path, "wb") as file:
      figure.savefig(file, format="png", dpi=120)


def looks(models: Iterable[str]) -> dict[str, dict]:
  """Returns {model: colour and marker}, from dark to light in this order."""
  models = list(models)
  shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, len(models)))
  return {
    model: {"color": tuple(shade), "marker": _MARKERS[i % len(_MARKERS)]}
    for i, (model, shade) in enumerate(zip(models, shades))
  }


def logarithmic(axes, which: str, values: Sequence[float]) -> None:
  """Makes an axis logarithmic, with a margin and few, plainly written ticks.

  Args:
    axes: of matplotlib.
    which: "x" or "y".
    values: that the axis has to show, above 0.
  """
  values = np.asarray(values, float)
  values = values[np.isfinite(values) & (values > 0)]
  if not len(values):
    return  # what is empty has no logarithm
  axis = axes.xaxis if which == "x" else axes.yaxis
  getattr(axes, f"set_{which}scale")("log")
  low, high = values.min(), values.max()
  margin = max((high / low) ** 0.04, 1.01)
  getattr(axes, f"set_{which}lim")(low / margin, high * margin)
  axis.set_major_locator(FixedLocator(ticks(values)))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def ticks(values: Sequence[float]) -> np.ndarray:
  """Returns where a logarithmic axis that shows `values` has ticks.

  At the values themselves if they are few different ones, in even steps if they
  are close, else at powers of two of a round number, or of ten.
  """
  values = np.asarray(values, float)
  own, low, high = np.unique(values), values.min(), values.max()
  if len(own) == 1 or len(own) <= _FEW and len(own) < len(values):
    return own
  if high / low < 4.0:
    step = 10.0 ** np.floor(np.log10(high - low or high))
    while (high - low) / step < 4.0:
      step /= 2.0
    return np.arange(np.ceil(low / step), high / step + 1e-9) * step
  octaves = np.log2(high / low)
  unit = 10.0 ** (3.0 * np.floor(np.log10(high) / 3.0))
  base, stride = 2.0, 1
  if octaves > _MOST_TICKS:
    base, unit = 10.0, 1.0
    stride = int(np.ceil(octaves / np.log2(10.0) / _MOST_TICKS))
  first, last = (np.log(x / unit) / np.log(base) for x in (low, high))
  powers = np.arange(np.ceil(first - 1e-9), np.floor(last + 1e-9) + 1, stride)
  return unit * base**powers


def plain(value: float) -> str:
  """Returns a number as one says it: 0.25, 16k, 500M, or a power of ten."""
  if value >= 1e13:
    factor, power = f"{value:.2e}".split("e")
    times = "" if float(factor) == 1 else rf"{float(factor):g}\times"
    return rf"${times}10^{{{int(power)}}}$"
  for size, suffix in _SUFFIXES:
    if value >= size:
      return f"{value / size:.4g}{suffix}"
  return f"{value:.4g}"
