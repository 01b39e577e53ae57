"""Pictures with text that matplotlib would take for formulas, or lacks."""

import logging

import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from matplotlib import font_manager
from matplotlib.figure import Figure

from nfnets_tf import figures

FORMULAS = [
  "$5_$10 bill",
  r"$\frac{$",
  "a_b^c",
  r"\$ {x} %s #1",
  "$$",
  "<b>&|`",
]


def pixels(path):
  return tf.io.decode_png(path.read_bytes(), channels=3).numpy()


def draw(path, *texts, formulas=False):
  """Draws a figure with texts in every place that can have one."""
  figure = Figure(figsize=(3, 3), layout="constrained")
  axes = figure.subplots()
  for text in texts:
    axes.plot([0, 1], [0, 1], label=text)
  axes.legend()
  axes.set(title=texts[0], xlabel=texts[0], ylabel=texts[0])
  axes.set_xticks(range(len(texts)), texts)
  axes.set_yticks(range(len(texts)), texts, minor=True)
  figure.suptitle(texts[0])
  axes.text(0.5, 0.5, texts[0])
  figures.save_png(figure, str(path), dpi=50, formulas=formulas)
  return pixels(path)


def test_text_is_drawn_as_it_is(tmp_path):
  drawn = draw(tmp_path / "a.png", *FORMULAS)
  # The naive twin: matplotlib's own way to write a dollar sign.
  with matplotlib.rc_context({"text.parse_math": False}):
    twin = draw(tmp_path / "b.png", *FORMULAS, formulas=True)
  np.testing.assert_array_equal(drawn, twin)


def test_formulas_where_they_are_meant(tmp_path):
  formula = draw(tmp_path / "a.png", "$C^2$", formulas=True)
  plain = draw(tmp_path / "b.png", "$C^2$")
  assert formula.shape == plain.shape and (formula != plain).any()
  escaped = draw(tmp_path / "c.png", r"\$C^2\$", formulas=True)
  np.testing.assert_array_equal(escaped, plain)


@pytest.mark.parametrize(
  "text, drawn",
  [
    ("猫 (1)", "猫 (1)"),
    ("e\u0301te\u0301", "\xe9t\xe9"),  # as macOS names files
    ("a\nb\tc\0", "a�b�c�"),
    ("bad\udcff", "bad�"),
    ("x" * 255, "x" * 39 + "…"),
    ("猫" * 40, "猫" * 19 + "…"),
    ("x" * 39, "x" * 39),
    (7, "7"),
  ],
)
def test_labels_are_one_short_line(text, drawn):
  assert figures.label(text) == drawn
  assert figures.label("x" * 9, 4) == "xxx…"


def have(characters):
  """Returns whether any installed font has all of some characters."""
  charmaps = (
    font_manager.get_font(path).get_charmap()
    for path in {entry.fname for entry in font_manager.fontManager.ttflist}
    if "LastResort" not in path  # boxes for all characters
  )
  return any(all(ord(x) in map_ for x in characters) for map_ in charmaps)


@pytest.mark.parametrize("text", ["猫と犬", "고양이", "เแมว", "кот → ☕"])
def test_fonts_have_the_characters_or_it_is_said(text, caplog):
  with caplog.at_level(logging.WARNING):
    families = figures.fonts_for(f"cat {text}")
    figures.fonts_for(f"dog {text}")  # said once
  paths = [
    font_manager.findfont(
      font_manager.FontProperties(family=[name]), fallback_to_default=False
    )
    for name in families  # raises unless it is installed
  ]
  drawn = set().union(
    *(font_manager.get_font(path).get_charmap() for path in paths)
  )
  if have(text):
    assert drawn.issuperset(map(ord, text.replace(" ", "")))
    assert not caplog.records
  else:
    (warning,) = caplog.messages
    assert "Noto Sans CJK JP" in warning and text[0] in warning


def test_characters_that_no_font_has_are_said_once(tmp_path, caplog, recwarn):
  unassigned = "\ue123\U000fff00 \u2d2f"  # private, and an unassigned one
  glyphless = "\U00012345"  # cuneiform
  with caplog.at_level(logging.WARNING):
    for name in ("a.png", "b.png"):
      drawn = draw(tmp_path / name, unassigned + glyphless)
      assert drawn.min() < 128
  if not have(glyphless):
    (warning,) = caplog.messages
    assert glyphless in warning and "Arial Unicode MS" in warning
  assert not [x for x in recwarn if "missing" in str(x.message)]


def test_ascii_keeps_the_font(caplog):
  assert figures.fonts_for("cat 1") == matplotlib.rcParams["font.family"]
  with matplotlib.rc_context({"font.family": ["DejaVu Serif"]}):
    assert figures.fonts_for("猫")[0] == "DejaVu Serif"
