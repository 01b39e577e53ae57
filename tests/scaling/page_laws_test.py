"""The laws of a sweep's report."""

import pytest

from nfnets_tf.scaling.overview import overview_of
from nfnets_tf.scaling.page_laws import (
  Laws,
  fit_laws,
  lacking,
  law_points,
  tell_laws,
)
from nfnets_tf.scaling.sweep_store import SweepStore
from tests.scaling import sweeps


def view_of(folder, done=None):
  board = SweepStore(str(folder))
  sweep = sweeps.make_sweep(sweeps.study_grid())
  cells = None if done is None else sweep.points[:done]
  sweeps.finish(board, sweep, cells)
  return overview_of(sweeps.status_of(board, sweep))


def fit(view) -> Laws:
  return fit_laws(law_points(view), budgets=12, resamples=20, seed=0)


def test_a_whole_study_has_all_laws(tmp_path):
  found = fit(view_of(tmp_path))
  assert len(found.points) == 20 and lacking(found) == []
  told = tell_laws(found)
  assert set(told["law"]) == {
    "L = a C^-b",
    "L = a C^-b + c",
    "optima between models",
    "L = c + A N^-u + B E^-v".replace("N^-u", "(N / N0)^-u"),
  }
  assert (told["95 % from"] <= told["to"]).all()
  floor = told[told["coefficient"] == "floor"]["value"].item()
  assert floor == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("done, laws", [(0, 0), (1, 0), (4, 2)])
def test_what_is_lacking_is_told(tmp_path, done, laws):
  found = fit(view_of(tmp_path, done))
  missing = lacking(found)
  assert len(missing) == 4 - laws
  assert all("not enough points; it takes" in words for words in missing)
  assert tell_laws(found)["law"].nunique() == laws if laws else True


def test_cells_that_are_open_are_no_points(tmp_path):
  view = view_of(tmp_path, 3)
  assert len(law_points(view)) == 3
