"""Pictures inside a page."""

import re
import xml.etree.ElementTree

import pytest

from nfnets_tf.scaling.page_svg import (
  INK,
  STEPS,
  Drawing,
  categories,
  colour,
  on_page,
  plain_words,
  ramp,
  scale,
)


def drawn() -> Drawing:
  drawing = Drawing("x & $y$", "loss")
  drawing.line([1, 2], [3, 4], "a <curve>", color=colour(0, 2))
  drawing.dot(1, 3, "a dot", colour=colour(1, 2), hollow=True, marker="o")
  drawing.write(1, 3, "a word")
  return drawing


def test_a_drawing_is_an_element_whose_ids_are_its_own():
  markup = drawn().svg("one")
  xml.etree.ElementTree.fromstring(
    markup.replace("xlink:href", "href").replace("<svg ", "<svg ", 1)
  )
  assert all(i.startswith("one") for i in re.findall(r'id="([^"]*)"', markup))
  assert "<title>a &lt;curve&gt;</title>" in markup
  assert "a word" in markup and "x &amp; $y$" in markup
  assert drawn().svg("one") == markup  # the same data, the same bytes


def test_colours_are_those_of_the_page():
  markup = drawn().svg("one")
  assert "#c0de" not in markup
  assert "var(--ramp0)" in markup and f"var(--ramp{STEPS - 1})" in markup
  assert on_page(f'fill="{INK}"') == 'fill="currentColor"'
  light, dark = ramp(dark=False), ramp(dark=True)
  assert len(light) == len(dark) == STEPS and light != dark


@pytest.mark.parametrize(
  "values, kind",
  [([1, 10], "log"), ([0, 10], "linear"), ([5, 5], "linear"), ([], "linear")],
)
def test_an_axis_is_logarithmic_where_it_can_be(values, kind):
  axes = Drawing("x", "y").axes
  scale(axes, "x", values)
  assert axes.get_xscale() == kind


def test_words_stand_below_their_places():
  axes = Drawing("x", "y").axes
  categories(axes, ["a", "$b"])
  assert [t.get_text() for t in axes.get_xticklabels()] == ["a", r"\$b"]
  assert plain_words("1 $") == r"1 \$"
