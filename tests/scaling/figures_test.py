import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from matplotlib.colors import to_rgba

from nfnets_tf.scaling import drawing, figures, laws, paper_points
from nfnets_tf.scaling.held_back import predict_held_back
from tests.support.tables import paper_table

SIX = ["F0", "F1", "F3", "F3+", "F7", "F7+"]
LABELS = {
  "compute": "TPU-v4 core-hours",
  "loss": "loss (nats)",
  "epochs": "epochs",
  "rate": "peak learning rate",
  "error": "error (%)",
}


@pytest.fixture
def draw(monkeypatch, tmp_path):
  """Draws, checks the PNG and returns matplotlib's axes."""
  drawn = []

  class Figure(drawing.Figure):
    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      drawn.append(self)

  monkeypatch.setattr(drawing, "Figure", Figure)

  def call(function, *tables, **options):
    path = tmp_path / "figure.png"
    function(*tables, str(path), labels=LABELS, **options)
    image = tf.io.decode_png(path.read_bytes()).numpy()
    inches = drawn[-1].get_size_inches()
    assert image.shape[:2] == tuple((120 * inches[::-1]).round())
    (axes,) = drawn[-1].axes
    return axes

  return call


def legend(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def losses(draw, points, models=SIX, power=None, offset=None, held_back=None):
  return draw(
    figures.draw_losses,
    points,
    models=models,
    power=power,
    offset=offset,
    held_back=held_back,
  )


def test_figure_2_has_a_curve_a_model(draw):
  points = paper_table()
  axes = losses(draw, points.sample(frac=1, random_state=0))
  assert legend(axes) == [line.get_label() for line in axes.lines] == SIX
  for model, line in zip(SIX, axes.lines):
    own = points[points["model"] == model]  # from the cheapest on
    assert line.get_xdata().tolist() == own["compute"].tolist()
    assert line.get_ydata().tolist() == own["loss"].tolist()
    look = drawing.looks(SIX)[model]
    assert (line.get_color(), line.get_marker()) == tuple(look.values())
  assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
  assert axes.get_xlabel() == "TPU-v4 core-hours"
  assert axes.get_ylabel() == "loss (nats)"


def test_figure_2_has_the_laws_and_what_the_left_predicts(draw):
  compute, loss = paper_table(best=True)
  power = laws.fit_power_law(compute, loss)
  offset = laws.fit_offset_law(compute, loss)
  axes = losses(draw, paper_table(), power=power, offset=offset)
  assert legend(axes)[6:] == [
    r"$3.85\,C^{-0.043}$",
    r"$2.76\,C^{-0.0937} + 1.42$",
  ]
  straight, bent = axes.lines[6:]
  assert (straight.get_linestyle(), bent.get_linestyle()) == ("--", ":")
  for line, law in ((straight, power), (bent, offset)):
    x = line.get_xdata()
    assert (x[0], x[-1]) == pytest.approx((401, 106_600))
    np.testing.assert_allclose(line.get_ydata(), law.predict(x))
  assert not axes.collections  # no band without draws
  power = laws.bootstrap(power, compute, loss, resamples=20, seed=0)
  held_back = predict_held_back(
    compute, loss, threshold=None, resamples=0, seed=0
  )
  axes = losses(draw, paper_table(), power=power, held_back=held_back)
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices
  assert corners[:, 1].min() == pytest.approx(power.band([106_600])[0, 0])
  *_, threshold, circles = axes.lines
  assert list(threshold.get_xdata()) == [held_back.threshold] * 2
  assert list(circles.get_xdata()) == list(held_back.compute)
  predicted = held_back.power.predict(held_back.compute)
  np.testing.assert_allclose(circles.get_ydata(), predicted)
  assert legend(axes)[-1] == "predicted from the left"


def test_predictions_beyond_the_losses_stay_in_the_picture(draw):
  compute = [1.0, 2, 4, 100]
  loss = [8.0, 4, 2, 1.9]
  held_back = predict_held_back(
    compute, loss, threshold=50, resamples=0, seed=0
  )
  points = pd.DataFrame({"model": "F0", "compute": compute, "loss": loss})
  low, high = losses(draw, points, ["F0"], held_back=held_back).get_ylim()
  assert low < held_back.power.predict([100])[0] < 0.1 and high > 8


@pytest.mark.parametrize("threshold", [0.5, 1e9], ids=["no law", "no points"])
def test_nothing_held_back_is_not_drawn(draw, threshold):
  compute, loss = paper_table(best=True)
  nothing = predict_held_back(
    compute, loss, threshold=threshold, resamples=0, seed=0
  )
  assert len(losses(draw, paper_table(), held_back=nothing).lines) == 6


def rates(**columns):
  names = {"learning_rate": "rate"}
  table = paper_points.optimal_learning_rates().rename(columns=names)
  return table.assign(**columns)


def test_figure_3_has_a_line_a_model_and_all_of_them_show(draw):
  models = ["F0", "F3", "F7+"]
  axes = draw(figures.draw_rates, rates(), models=models)
  assert legend(axes) == models and not axes.collections
  first, _, last = axes.lines
  assert first.get_xdata().tolist() == [0.25, 0.5, 1, 2, 4, 8]
  assert last.get_ydata().tolist() == [1.6, 1.6, 1.6, 0.8, 0.4, 0.4]
  widths = [line.get_linewidth() for line in axes.lines]
  assert widths[0] > widths[1] > widths[2]  # the first lies below
  assert axes.yaxis.get_majorticklocs().tolist() == [0.4, 0.8, 1.6]
  labels = (axes.get_xlabel(), axes.get_ylabel())
  assert labels == ("epochs", "peak learning rate")


def test_rates_beyond_which_a_better_one_may_lie_have_an_arrow(draw):
  edges = ["lower", "upper", "only", None, "upper", None]
  table = rates(edge=edges * 3).query("model == 'F0'")
  axes = draw(figures.draw_rates, table, models=["F0"])
  lower, upper, only = (c.get_offsets().tolist() for c in axes.collections)
  assert lower == [[0.25, 1.6]] and only == [[1, 1.6]]
  assert upper == [[0.5, 1.6], [4, 1.6]]
  tips = [c.get_paths()[0].vertices for c in axes.collections[:2]]
  # The lower one points down: it is the lower end that is a single point.
  for tip, end in zip(tips, (np.min, np.max)):
    heights = tip[:-1, 1]
    assert (heights == end(heights)).sum() == 1


def test_cells_without_a_rate_leave_a_gap(draw):
  table = rates()
  table.loc[[0, 7], "rate"] = np.nan
  axes = draw(figures.draw_rates, table, models=["F0", "F3", "F7+"])
  assert np.isnan(axes.lines[0].get_ydata()[0])
  low, high = axes.get_ylim()
  assert 0.3 < low < 0.4 and 1.6 < high < 2


def test_figure_1_has_a_curve_a_model_and_a_star_a_system(draw):
  names = {
    "tpu_v4_core_hours": "compute",
    "imagenet_top1_error_percent": "error",
  }
  table = paper_points.imagenet_errors().rename(columns=names)
  ours = table["model"].isin(SIX)
  axes = draw(figures.draw_errors, table[ours], table[~ours], models=SIX[1:])
  assert legend(axes) == [*SIX[1:], *table[~ours]["model"]]
  assert [line.get_label() for line in axes.lines] == legend(axes)
  stars = axes.lines[5:]
  assert {star.get_marker() for star in stars} == {"*"}
  assert len({to_rgba(star.get_color()) for star in stars}) == 4
  for star, row in zip(stars, table[~ours].itertuples()):
    at = (*star.get_xdata(), *star.get_ydata())
    assert at == (row.compute, row.error)
  # The stars are inside too.
  assert axes.get_xlim()[1] > 276_000 and axes.get_ylim()[0] < 9.55
  assert axes.get_ylabel() == "error (%)"


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("rate", [0.1, np.nan])
def test_a_study_that_has_just_begun_can_be_drawn(draw, rows, rate):
  row = {"model": "F0", "compute": 3.0, "loss": 2.0, "epochs": 1.0}
  row.update(rate=rate, edge="only", error=9.0)
  table = pd.DataFrame([row]).iloc[:rows]
  none = table.iloc[:0]
  for axes in (
    losses(draw, table, ["F0"]),
    draw(figures.draw_rates, table, models=["F0"]),
    draw(figures.draw_errors, table, none, models=["F0"]),
  ):
    (line,) = axes.lines
    assert len(line.get_xdata()) == rows and legend(axes) == ["F0"]
