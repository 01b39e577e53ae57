"""Markup: what is text stays text."""

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.scaling.page_html import (
  document,
  duration,
  number,
  table,
  text,
)


def test_text_is_shown_as_it_is():
  assert text("<b>&") == "&lt;b&gt;&amp;" and text(3) == "3"


@pytest.mark.parametrize(
  "value, shown",
  [(3.0, "3"), (1234567, "1,234,567"), (0.123456, "0.1235"), (1e13, "1e+13")],
)
def test_numbers(value, shown):
  assert number(value) == shown


@pytest.mark.parametrize(
  "seconds, shown",
  [
    (0, "0 s"),
    (59.6, "1 min 0 s"),
    (450, "7 min 30 s"),
    (18_720, "5 h 12 min"),
    (273_600, "3 d 4 h"),
  ],
)
def test_durations(seconds, shown):
  assert duration(seconds) == shown


def test_a_table_has_its_cells_and_marks_the_best():
  rows = pd.DataFrame({"a<": ["x", None], "n": [1.5, np.nan]})
  markup = table(rows, best=[True, False])
  assert "a&lt;" in markup and markup.count("<tr") == 3
  assert markup.count('class="best"') == 1
  assert '<td class="number" data-value="1.5">1.5</td>' in markup
  assert '<td class="words" data-value=""></td>' in markup
  assert "nan" not in markup and "None" not in markup


def test_a_document_loads_itself_again_only_if_it_is_to():
  page = document("a&b", ["<p>1</p>", ""], refresh_seconds=30)
  assert 'http-equiv="refresh" content="30"' in page
  assert "<title>a&amp;b</title>" in page and "<p>1</p>" in page
  assert 'http-equiv="refresh"' not in document("a", [], refresh_seconds=None)
  assert "LIGHT" not in page and "DARK" not in page
