"""The picture of a run: loss, accuracy and learning rate against the step."""

from collections.abc import Sequence

import matplotlib
import tensorflow as tf
from matplotlib.figure import Figure

_STYLES = {
  "loss": ("training, as optimized", "0.55", 1.0),
  "top1": ("training", "0.55", 1.0),
  "heldout_loss": ("held out, raw weights", "C0", 1.5),
  "heldout_top1": ("held out, raw weights", "C0", 1.5),
  "ema_heldout_loss": ("held out, averaged weights", "C1", 1.5),
  "ema_heldout_top1": ("held out, averaged weights", "C1", 1.5),
  "learning_rate": (None, "C2", 1.5),
}


def draw_curves(records: Sequence[dict], path: str, *, title: str) -> None:
  """Draws the records of a metrics.jsonl into a PNG.

  Args:
    records: each with "step" and any of the curves' names.
    path: of the picture, local or gs://.
    title: of the picture.
  """
  with matplotlib.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
  figure.suptitle(title)
  _plot(loss, records, ("loss", "heldout_loss", "ema_heldout_loss"))
  loss.set(ylabel="cross-entropy (nats)", yscale="log")
  loss.legend(fontsize="small")
  _plot(accuracy, records, ("top1", "heldout_top1", "ema_heldout_top1"), 100.0)
  accuracy.set(ylabel="top-1 (%)", ylim=(None, 100.5))
  _plot(rate, records, ("learning_rate",))
  rate.set(ylabel="learning rate")
  for axes in (loss, accuracy, rate):
    axes.set_xlabel("step")
  with tf.io.gfile.GFile(path, "wb") as file:
    figure.savefig(file, format="png", dpi=120)


def _plot(axes, records, names, scale=1.0):
  for name in names:
    points = [(r["step"], r[name] * scale) for r in records if name in r]
    label, colour, width = _STYLES[name]
    marker = "o" if "heldout" in name else None
    axes.plot(
      *zip(*points) if points else ((), ()),
      label=label,
      color=colour,
      linewidth=width,
      marker=marker,
      markersize=3,
    )
