"""Pictures as SVG that a page holds inside itself, light or dark.

Matplotlib draws with colours that stand for others: that of the page's text,
and the steps of a ramp, which the page's style sheet has in a light and a dark
version. Letters stay letters, so that they are the page's own font.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nfnets_tf.scaling.drawing import logarithmic

INK = "#c0dec0"
STEPS = 32

_STYLE = {
  "svg.fonttype": "none",
  "svg.hashsalt": "page",  # the same data, the same bytes
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "axes.formatter.useoffset": False,
  "text.color": INK,
  "xtick.color": INK,
  "ytick.color": INK,
  "grid.color": INK,
  "grid.alpha": 0.14,
  "font.size": 10.5,
}
_MARGINS = {"left": 0.135, "right": 0.975, "bottom": 0.15, "top": 0.965}
_LIGHT, _DARK = (0.0, 0.84), (0.3, 1.0)  # parts of viridis that stand out
_MOST_CATEGORIES = 12


class Drawing:
  """A figure with one pair of axes.

  Args:
    xlabel: what is on the horizontal axis.
    ylabel: what is on the vertical axis.
    height: in inches; the width is 5.8.

  Attributes:
    axes: of matplotlib.
  """

  def __init__(self, xlabel: str, ylabel: str, *, height: float = 3.9):
    self._titles: list[str] = []
    with _style():
      self._figure = Figure(figsize=(5.8, height))
      self.axes = self._figure.subplots(gridspec_kw=_MARGINS)
      self.axes.set(xlabel=plain_words(xlabel), ylabel=plain_words(ylabel))

  def line(self, xs: Sequence, ys: Sequence, title: str, **look) -> None:
    """Draws a curve that says its title where the pointer is on it."""
    (line,) = self.axes.plot(xs, ys, **look)
    self._name(line, "curve", title)

  def dot(self, x, y, title: str, *, colour: str, hollow: bool, **look) -> None:
    """Draws a point that says its title where the pointer is on it."""
    look = {"markersize": 6.5, "markeredgecolor": colour, **look}
    face = "none" if hollow else colour
    (dot,) = self.axes.plot([x], [y], markerfacecolor=face, **look)
    self._name(dot, "dot", title)

  def write(self, x, y, words: str) -> None:
    """Writes words beside a point."""
    self.axes.annotate(
      plain_words(words), (x, y), xytext=(6, 6), textcoords="offset points"
    )

  def svg(self, name: str) -> str:
    """Returns the <svg> element.

    Args:
      name: that no other picture of the page has; all ids begin with it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _style():
      self._figure.savefig(
        buffer, format="svg", transparent=True, metadata=nothing
      )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    for number, title in enumerate(self._titles):
      told = f"<title>{html.escape(title)}</title>"
      text = re.sub(
        rf'(<g id="(?:curve|dot)-{number}">)',
        lambda m, told=told: m[1] + told,
        text,
      )
    return _fit_to_page(text, name)

  def _name(self, artist, kind, title):
    artist.set_gid(f"{kind}-{len(self._titles)}")
    self._titles.append(title)


def colour(number: int, count: int) -> str:
  """Returns the colour that stands for one of several steps of the ramp."""
  step = round((STEPS - 1) * number / max(1, count - 1))
  return f"#c0de{step:02x}"


def ramp(*, dark: bool) -> list[str]:
  """Returns the ramp's colours on a light or a dark page."""
  low, high = _DARK if dark else _LIGHT
  shades = matplotlib.colormaps["viridis"](np.linspace(low, high, STEPS))
  return [matplotlib.colors.to_hex(shade) for shade in shades]


def on_page(text: str) -> str:
  """Returns markup with the page's colours in place of what stands for them."""
  text = text.replace(INK, "currentColor")
  return re.sub(
    r"#c0de([01][0-9a-f])", lambda m: f"var(--ramp{int(m[1], 16)})", text
  )


def scale(axes, which: str, values: Sequence) -> None:
  """Fits an axis to what it has to show.

  Args:
    axes: of matplotlib.
    which: "x" or "y".
    values: numbers; logarithmic if all of them are above 0.
  """
  values = np.asarray(values, float)
  values = values[np.isfinite(values)]
  if not len(values):
    return
  low, high = float(values.min()), float(values.max())
  if low > 0 and high > low * (1 + 1e-6):
    logarithmic(axes, which, values)
  elif high - low <= 1e-6 * abs(high):  # one value
    margin = abs(high) * 0.1 or 1.0
    getattr(axes, f"set_{which}lim")(low - margin, high + margin)
    getattr(axes, f"set_{which}ticks")([high], [f"{high:.4g}"])


def categories(axes, labels: Sequence[str]) -> None:
  """Writes words below the places 0, 1, 2 and so on of the horizontal axis."""
  stride = -(-len(labels) // _MOST_CATEGORIES)
  places = range(0, len(labels), stride)
  axes.set_xticks(list(places), [plain_words(labels[i]) for i in places])
  axes.set_xlim(-0.3, len(labels) - 0.7)


def plain_words(text: str) -> str:
  """Returns words in which matplotlib sees no formula."""
  return str(text).replace("$", r"\$")


@contextlib.contextmanager
def _style() -> Iterator[None]:
  with matplotlib.rc_context(_STYLE):
    yield


def _fit_to_page(text: str, name: str) -> str:
  text = re.sub(r'\bid="', f'id="{name}-', text)
  text = re.sub(r'url\(#|xlink:href="#', lambda m: f"{m[0]}{name}-", text)
  text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
  text = re.sub(r'font: [^";]*?([\d.]+)px [^";]*', r"font-size: \1px", text)
  head, rest = text.split(">", 1)
  box = re.search(r'viewBox="[^"]*"', head)[0]
  rest = re.sub(r"\s*\n\s*", "\n", rest).strip()
  return on_page(f'<svg {box} role="img" id="{name}">{rest}')
