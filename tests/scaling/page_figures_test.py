"""All figures of the report."""

import pandas as pd

from nfnets_tf.scaling import allocation
from nfnets_tf.scaling.page_figures import (
  draw_all,
  draw_allocation,
  draw_tuning,
)
from nfnets_tf.scaling.page_laws import Laws, law_points
from tests.scaling.page_curves_test import curves
from tests.scaling.page_laws_test import fit, view_of


def test_a_whole_study_has_eight_figures(tmp_path):
  view = view_of(tmp_path)
  pictures = draw_all(view, fit(view))
  assert len(pictures) == 8 and all(p.drawing for p in pictures)


def test_a_search_has_a_line_for_each_cell(tmp_path):
  pictures = draw_tuning(view_of(tmp_path))
  assert [curves(picture) for picture in pictures] == [5, 5, 5, 5]
  assert pictures[0].title.startswith("W8: held-out loss")
  words = [words for _, _, words in pictures[0].legend]
  assert words == [f"EPOCHS = {e}" for e in (1, 2, 4, 8, 16)]


def test_without_laws_there_are_words(tmp_path):
  view = view_of(tmp_path, 0)
  pictures = draw_all(view, Laws(law_points(view)))
  assert pictures and not any(p.drawing for p in pictures)
  assert all(p.note for p in pictures)


def test_the_allocation_says_why_it_is_not_there(tmp_path):
  view = view_of(tmp_path, 10)
  points = law_points(view)
  few = allocation.optimal_allocation(points, size="macs", budgets=12)
  for picture in draw_allocation(few, "macs", None):
    assert (
      picture.drawing is None and "reached by more than two" in picture.note
    )
  edge = pd.DataFrame({"state": ["edge"], "models": [3]})
  for picture in draw_allocation(edge, "macs", None):
    assert "the smallest or the largest is best" in picture.note
