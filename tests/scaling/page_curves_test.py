"""Figures with a curve for each model."""

from nfnets_tf.scaling.page_curves import Picture, draw_loss, draw_optima
from tests.scaling.page_laws_test import fit, view_of


def curves(picture: Picture) -> int:
  return picture.drawing.svg("x").count('id="x-curve-')


def test_loss_has_a_curve_for_each_size_and_law(tmp_path):
  view = view_of(tmp_path)
  found = fit(view)
  picture = draw_loss(view, found.power, found.offset)
  assert curves(picture) == 4 + 2
  assert [words for _, _, words in picture.legend] == [
    "W8",
    "W16",
    "W32",
    "W64",
    "L = a C^-b",
    "L = a C^-b + c",
  ]
  assert curves(draw_loss(view, None, None)) == 4


def test_optima_have_a_curve_for_each_size(tmp_path):
  picture = draw_optima(view_of(tmp_path))
  assert curves(picture) == 4 and "peak learning rate" in picture.title


def test_before_the_first_point_there_are_words(tmp_path):
  view = view_of(tmp_path, 0)
  for picture in (draw_loss(view, None, None), draw_optima(view)):
    assert picture.drawing is None
    assert picture.note == "No point has finished yet."
