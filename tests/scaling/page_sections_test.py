"""The sections of a report, one by one."""

import pytest

from nfnets_tf.scaling import page_sections as parts
from nfnets_tf.scaling.overview import overview_of
from nfnets_tf.scaling.sweep_store import SweepStore
from tests.scaling import sweeps
from tests.scaling.page_laws_test import fit


@pytest.fixture
def study(tmp_path):
  """(plan, results, overview) of a study of which a cell is finished."""
  board = SweepStore(str(tmp_path))
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(board, sweep, sweep.points[:1])
  status = sweeps.status_of(board, sweep)
  return status.plan, status.results, overview_of(status)


def test_a_section_has_a_title_and_nothing_if_it_is_empty():
  made = parts.section("T", lambda word: word, "x")
  assert made == "<section><h2>T</h2>\nx</section>"
  assert parts.section("T", lambda: "") == ""


def test_what_goes_wrong_in_one_section_is_told_there(caplog):
  def fails():
    raise ValueError("<what>")

  made = parts.section("T", fails)
  assert "This could not be made: ValueError(&#x27;&lt;what&gt;&#x27;)" in made


def test_the_head_counts(study):
  made = parts.head("name", study[2], 30)
  assert "<h1>name</h1>" in made and "every 30 s" in made
  assert "3 of 22" in made and 'aria-label="3 done, 0 failed' in made
  assert "every" not in parts.head("name", study[2], None)


def test_tables_have_a_row_for_each(study):
  plan, results, view = study
  assert parts.best_of_cells(view).count("<tr") == 1 + 20
  points = parts.all_points(view, results)
  assert points.count("<tr") == 1 + 22 and points.count('"best"') == 1
  assert parts.plan(plan).count("<tr") == 1 + 20
  assert "No point is known" in parts.all_points(view, results.iloc[:0])


def test_figures_and_laws_have_words_where_they_lack_points(study):
  found = fit(study[2])
  assert parts.figures(study[2], found).count("<svg") == 3
  assert "not enough points" in parts.fitted_laws(found)
  assert parts.failures(study[2]) == ""


def test_the_configuration_is_folded():
  made = parts.configuration("A = '<x>'")
  assert "<details>" in made and "A = &#x27;&lt;x&gt;&#x27;" in made
