"""The pictures of a study."""

import pathlib

import matplotlib.figure
import matplotlib.image
import pytest

from nfnets_tf.scaling.study_figures import draw_allocation, draw_study
from tests.support.tables import COLUMNS
from tests.support.tables import fit_quickly as fit
from tests.support.tables import known_table as known


@pytest.fixture
def figures(monkeypatch):
  """Figures that were written, by file name."""
  written = {}
  save = matplotlib.figure.Figure.savefig

  def noted(self, file, **options):
    written[pathlib.Path(file.name).name] = self
    return save(self, file, **options)

  monkeypatch.setattr(matplotlib.figure.Figure, "savefig", noted)
  return written


def texts(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_study_has_three_pictures(figures, tmp_path):
  paths = draw_study(fit(known()), COLUMNS, str(tmp_path))
  names = ["loss.png", "rates.png", "allocation.png"]
  assert [pathlib.Path(p).name for p in paths] == names
  for path in paths:
    assert matplotlib.image.imread(path).std() > 0.05
  (loss,) = figures["loss.png"].axes
  assert texts(loss)[:6] == [f"n{i}" for i in range(6)]
  assert loss.get_xscale() == loss.get_yscale() == "log"
  left, right = figures["allocation.png"].axes
  assert "best size" in texts(left)[-1] and "best epochs" in texts(right)[-1]


def test_without_rates_there_is_no_picture_of_them(tmp_path):
  table = known().drop(columns="rate").drop_duplicates(["net", "epochs"])
  paths = draw_study(fit(table.assign(rate=None)), COLUMNS, str(tmp_path))
  assert len(paths) == 2


@pytest.mark.parametrize("rows, pictures", [(0, 0), (1, 3), (3, 3)])
def test_a_study_that_has_just_begun_is_drawn(rows, pictures, tmp_path):
  fits = fit(known(sizes=[0]).iloc[:rows])
  assert len(draw_study(fits, COLUMNS, str(tmp_path))) == pictures


def test_the_allocation_alone(figures, tmp_path):
  path = str(tmp_path / "a.png")
  draw_allocation(fit(known()), COLUMNS, path, models=["n0", "n1"])
  assert texts(figures["a.png"].axes[0])[:2] == ["n0", "n1"]
