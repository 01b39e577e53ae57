"""Figures as PNG files: text is drawn as it is, in a font that has its script.

Matplotlib takes an even number of dollar signs for a formula, and draws a box
for every character that its own font lacks.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from nfnets_tf.fileio import write_atomically

LOGGER = logging.getLogger("nfnets_tf")

# Looked for in this order, before any other installed font; those for many
# scripts come first, so that one text has few styles.
FAMILIES = (
  "DejaVu Sans",
  "Noto Sans",
  "Noto Sans CJK JP",
  "Noto Sans CJK SC",
  "Noto Sans SC",
  "Noto Sans JP",
  "Noto Sans KR",
  "Source Han Sans SC",
  "WenQuanYi Zen Hei",
  "WenQuanYi Micro Hei",
  "Microsoft YaHei",
  "PingFang SC",
  "Hiragino Sans",
  "Yu Gothic",
  "Malgun Gothic",
  "Apple SD Gothic Neo",
  "Noto Sans Arabic",
  "Noto Sans Hebrew",
  "Noto Sans Devanagari",
  "Noto Sans Bengali",
  "Noto Sans Tamil",
  "Noto Sans Thai",
  "Noto Sans Ethiopic",
  "Nirmala UI",
  "Leelawadee UI",
  "Arial Unicode MS",
  "FreeSans",
  "Unifont",
)
_MAX_WIDTH = 40
_REGULAR_WEIGHTS = (400, "normal", "regular", "book")
# They claim all characters, and draw boxes or nothing.
_NO_FONTS = re.compile(r"\.?Last ?Resort|Adobe Blank|.*Fallback")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_reported: set[str] = set()  # characters that no font has


def label(text: object, width: int = _MAX_WIDTH) -> str:
  """Returns a name as it can be drawn: on one line, and shortened.

  Control characters and bytes that are no UTF-8 become a question mark in a
  diamond.

  Args:
    text: any name.
    width: at most, in Latin characters; Chinese ones are twice as wide.
  """
  # Composed: fonts have few of the marks that macOS' file names consist of.
  drawn = ""
  for character in unicodedata.normalize("NFC", str(text)):
    width -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
    if width < 1:
      return drawn + "…"
    is_drawable = unicodedata.category(character) not in ("Cc", "Cs")
    drawn += character if is_drawable else _REPLACEMENT
  return drawn


def prepare_text(figure: Figure, *, formulas: bool = False) -> None:
  """Gives all text of a figure fonts that have its characters.

  Logs one warning about the characters that no installed font has.

  Args:
    figure: complete.
    formulas: whether text between two dollar signs is a formula; elsewhere a
      dollar sign is one.
  """
  for axes in figure.axes:
    for axis in (axes.xaxis, axes.yaxis):
      axis.get_ticklabels(), axis.get_ticklabels(minor=True)  # makes them
  texts = figure.findobj(Text)
  families = fonts_for("".join(text.get_text() for text in texts))
  for text in texts:
    text.set_fontfamily(families)
    text.set_usetex(False)
    if not formulas:
      text.set_parse_math(False)


def save_png(
  figure: Figure, path: str, *, dpi: int, formulas: bool = False
) -> None:
  """Writes a figure to a local path or gs://; see `prepare_text`.

  Raises:
    RunError: if the file cannot be written.
  """
  prepare_text(figure, formulas=formulas)
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    # One for each character and size; `prepare_text` has said it.
    warnings.filterwarnings("ignore", "Glyph .* missing")
    figure.savefig(buffer, format="png", dpi=dpi)
  write_atomically(path, buffer.getvalue())


def fonts_for(text: str) -> list[str]:
  """Returns font families that have all characters, as far as any font does.

  These are matplotlib's own, then those of `FAMILIES`, then any other installed
  font. Logs a warning about characters that none has, once.
  """
  families = list(matplotlib.rcParams["font.family"])
  missing = _visible(text).difference(*map(_characters, families))
  if not missing:
    return families
  for family in _installed():
    if found := missing & _characters(family):
      families.append(family)
      missing -= found
    if not missing:
      return families
  _report_missing(missing)
  return families


def _visible(text: str) -> set[str]:
  """Returns the characters that need a glyph."""
  return {
    x
    for x in set(text)
    if unicodedata.category(x)[0] not in "CZ"
    and not "\N{VARIATION SELECTOR-1}" <= x <= "\N{VARIATION SELECTOR-16}"
  }


@functools.cache
def _characters(family: str) -> frozenset[str]:
  """Returns the characters of a font family, none of one that is unusable."""
  try:
    path = font_manager.findfont(
      font_manager.FontProperties(family=[family]), fallback_to_default=False
    )
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
  except (ValueError, RuntimeError, OSError):  # not installed, or of bitmaps
    return frozenset()


def _installed() -> Iterator[str]:
  """Yields the installed families, the known ones first."""
  yielded: set[str] = set()

  def new(names: Iterable[str]) -> list[str]:
    fresh = [name for name in dict.fromkeys(names) if name not in yielded]
    yielded.update(fresh)
    return fresh

  for rescan in (False, True):
    if rescan:
      _add_new_fonts()
    names = {
      entry.name
      for entry in font_manager.fontManager.ttflist
      if entry.style == "normal"
      and entry.weight in _REGULAR_WEIGHTS
      and not _NO_FONTS.match(entry.name)
    }
    yield from new(x for x in FAMILIES if x in names)
    yield from new(sorted(names))


@functools.cache
def _add_new_fonts() -> None:
  """Adds fonts that were installed after matplotlib had listed them."""
  manager = font_manager.fontManager
  known = {entry.fname for entry in manager.ttflist}
  for path in sorted(set(font_manager.findSystemFonts()) - known):
    try:
      manager.addfont(path)
    except Exception as error:  # fonts that matplotlib cannot read
      LOGGER.debug("%s is no usable font: %s", path, error)


def _report_missing(characters: set[str]) -> None:
  if fresh := sorted(characters - _reported):
    _reported.update(fresh)
    LOGGER.warning(
      "%d characters in the pictures, such as %s, are drawn as boxes, because"
      " no installed font has them; install one that does, such as one of the"
      " Noto fonts (looked for were %s, then all others).",
      len(fresh),
      " ".join(fresh[:5]),
      ", ".join(FAMILIES),
    )
