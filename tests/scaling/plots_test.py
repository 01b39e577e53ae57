"""The figures of a scaling study: what they show, and their files."""

import re
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from nfnets_tf.scaling import paper_data, plots, power_laws
from nfnets_tf.scaling.power_laws import extrapolate
from tests.support.tables import COLUMNS, fit_quickly, known_table, paper_table

SIX = ["F0", "F1", "F3", "F3+", "F7", "F7+"]
LABELS = {
  "compute": "TPU-v4 core-hours",
  "loss": "loss (nats)",
  "epochs": "epochs",
  "rate": "peak learning rate",
}


def legend(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def losses(points, **options):
  (axes,) = plots.plot_losses(points, labels=LABELS, **options).axes
  return axes


def tick_labels(axis):
  formatter = axis.get_major_formatter()
  formatter.set_locs(axis.get_majorticklocs())
  low, high = axis.get_view_interval()
  return [formatter(t) for t in axis.get_majorticklocs() if low <= t <= high]


def test_saves_png_at_its_size(tmp_path):
  figure, axes = plots.new_figure(3, 2, columns=2)
  assert len(axes) == 2
  axes[0].plot([1, 2], [3, 4])
  plots.save_png(figure, str(tmp_path / "p.png"))
  image = matplotlib.image.imread(tmp_path / "p.png")
  assert image.shape[:2] == (240, 360)
  assert image.min() < 0.2 and image.max() == 1.0  # neither white nor black


def test_svg_is_xml_with_text_and_prefixed_ids():
  svg, again = (
    plots.to_svg(losses(paper_table()).figure, "fig7") for _ in range(2)
  )
  assert svg == again
  root = xml.etree.ElementTree.fromstring(
    svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
  )
  ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
  assert ids and all(name.startswith("fig7-") for name in ids)
  assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= set(ids)
  assert "TPU-v4 core-hours" in "".join(root.itertext())
  assert "<style" not in svg


def test_leaves_matplotlibs_style_alone(monkeypatch):
  monkeypatch.setitem(matplotlib.rcParams, "axes.grid", False)
  before = dict(matplotlib.rcParams)
  plots.to_svg(losses(paper_table()).figure, "a")
  assert dict(matplotlib.rcParams) == before


def test_outliers_are_marked_and_stay_in_view():
  outliers = pd.DataFrame({"compute": [1e9], "loss": [0.02]})
  axes = losses(paper_table(), outliers=outliers)
  (marked,) = (c for c in axes.collections if c.get_label() == "outlier")
  assert marked.get_offsets().tolist() == [[1e9, 0.02]]
  assert axes.get_xlim()[1] > 1e9 and axes.get_ylim()[0] < 0.02
  assert "outlier" in legend(axes)
  none = losses(paper_table(), outliers=outliers.iloc[:0])
  assert "outlier" not in legend(none)


@pytest.mark.parametrize("name", ["_x", "$5_$10 bill", r"a\$b^2$", "<b>&amp;"])
def test_any_model_name_is_drawn_as_it_is(name, tmp_path):
  axes = losses(paper_table().replace({"model": {"F0": name}}))
  svg = plots.to_svg(axes.figure, "a")
  root = xml.etree.ElementTree.fromstring(
    svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
  )
  assert name in [text.strip() for text in root.itertext()]
  plots.save_png(axes.figure, str(tmp_path / "p.png"))


def test_models_have_distinct_styles_from_dark_to_light():
  models = [f"m{i}" for i in range(11)]
  styles = plots.model_styles(models)
  assert list(styles) == models and styles == plots.model_styles(iter(models))
  assert len({style["marker"] for style in styles.values()}) == 11
  colors = [style["color"] for style in styles.values()]
  # So that they can be distinguished in grayscale.
  assert np.diff([sum(color[:3]) for color in colors]).min() > 0
  assert plots.model_styles([]) == {}
  assert len(plots.model_styles(range(30))) == 30


@pytest.mark.parametrize(
  "values, labels",
  [
    ([5.0], ["5"]),
    ([1.6, 0.8, 1.6, 0.4], ["0.4", "0.8", "1.6"]),  # few: the values
    ([948_364_960, 160_606_284] * 2, ["161M", "948M"]),
    ([2.339, 2.985], ["2.4", "2.5", "2.6", "2.7", "2.8", "2.9", "3"]),
    ([400, 1e5], ["500", "1k", "2k", "5k", "10k", "20k", "50k", "100k"]),
    ([1e3, 1e9], ["1k", "10k", "100k", "1M", "10M", "100M", "1G"]),
  ],
  ids=str,
)
def test_log_axis_has_few_plain_ticks(values, labels):
  axes = Figure().subplots()
  plots.set_log_axis(axes, "x", [*values, np.nan, 0.0, -3.0, np.inf])
  assert axes.get_xscale() == "log" and axes.get_yscale() == "linear"
  low, high = axes.get_xlim()
  assert low < min(values) and max(values) < high
  assert tick_labels(axes.xaxis) == labels
  assert not len(axes.xaxis.get_minorticklocs())


def test_log_axis_of_large_numbers_has_powers_of_ten():
  axes = Figure().subplots()
  plots.set_log_axis(axes, "y", [1e19, 1e23])
  labels = tick_labels(axes.yaxis)
  assert len(labels) == 5 and "10^{23}" in labels[-1]


@pytest.mark.parametrize("seed", range(3))
def test_log_axis_has_one_to_ten_ticks(seed):
  generator = np.random.default_rng(seed)
  for _ in range(20):
    low = 10.0 ** generator.uniform(-6, 22)
    high = low * 10.0 ** generator.uniform(0.01, 9)
    axes = Figure().subplots()
    plots.set_log_axis(axes, "x", [low, high])
    assert 1 <= len(tick_labels(axes.xaxis)) <= 10, (low, high)


@pytest.mark.parametrize("values", [[], [np.nan], [0.0, -1.0]], ids=str)
def test_axis_without_positive_values_stays_linear(values):
  axes = Figure().subplots()
  plots.set_log_axis(axes, "x", values)
  assert axes.get_xscale() == "linear"


def test_axis_label_has_the_unit_or_the_name():
  assert plots.axis_label("flops") == "training FLOPs"
  assert plots.axis_label("cost in $") == r"cost in \$"


def test_losses_have_a_curve_per_model():
  points = paper_table()
  shuffled = points.sample(frac=1, random_state=0)
  axes = losses(shuffled.sort_values("parameters", kind="stable"))
  assert legend(axes) == [line.get_label() for line in axes.lines] == SIX
  for model, line in zip(SIX, axes.lines):
    rows = points[points["model"] == model]  # from the cheapest on
    assert line.get_xdata().tolist() == rows["compute"].tolist()
    assert line.get_ydata().tolist() == rows["loss"].tolist()
    style = plots.model_styles(SIX)[model]
    assert (line.get_color(), line.get_marker()) == tuple(style.values())
  assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
  assert axes.get_xlabel() == "TPU-v4 core-hours"
  assert axes.get_ylabel() == "loss (nats)"


def test_losses_have_laws_band_and_extrapolation():
  compute, loss = paper_table(best=True)
  power = power_laws.fit_power_law(compute, loss)
  offset = power_laws.fit_offset_law(compute, loss)
  axes = losses(paper_table(), power=power, offset=offset)
  assert legend(axes)[6:] == [
    r"$3.85\,C^{-0.043}$",
    r"$2.76\,C^{-0.0937} + 1.42$",
  ]
  for line, law in zip(axes.lines[6:], (power, offset)):
    x = line.get_xdata()
    assert (x[0], x[-1]) == pytest.approx((401, 106_600))
    np.testing.assert_allclose(line.get_ydata(), law.predict(x))
  assert not axes.collections  # no band without samples
  power = power_laws.bootstrap_law(power, compute, loss, resamples=20, seed=0)
  result = extrapolate(compute, loss, threshold=None, resamples=0, seed=0)
  axes = losses(paper_table(), power=power, extrapolation=result)
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices
  assert corners[:, 1].min() == pytest.approx(power.band([106_600])[0, 0])
  *_, threshold, circles = axes.lines
  assert list(threshold.get_xdata()) == [result.threshold] * 2
  assert list(circles.get_xdata()) == list(result.compute)
  predicted = result.power.predict(result.compute)
  np.testing.assert_allclose(circles.get_ydata(), predicted)


def test_extrapolated_losses_stay_inside_the_axes():
  compute, loss = [1.0, 2, 4, 100], [8.0, 4, 2, 1.9]
  result = extrapolate(compute, loss, threshold=50, resamples=0, seed=0)
  points = pd.DataFrame({"model": "F0", "compute": compute, "loss": loss})
  low, high = losses(points, extrapolation=result).get_ylim()
  assert low < result.power.predict([100])[0] < 0.1 and high > 8


def test_undecided_points_are_hollow_and_text_makes_categories():
  points = pd.DataFrame(
    {"model": "a", "compute": ["x", "y"], "loss": [1.0, 2.0], "open": [0, 1]}
  )
  axes = losses(points)
  curve, hollow = axes.lines
  assert len(curve.get_xdata()) == 2 and list(hollow.get_ydata()) == [2.0]
  assert hollow.get_markerfacecolor() == "white"
  assert axes.get_xscale() == "linear"


def test_rates_that_coincide_stay_visible():
  names = {"learning_rate": "rate"}
  table = paper_data.optimal_learning_rates().rename(columns=names)
  (axes,) = plots.plot_rates(table, labels=LABELS).axes
  assert legend(axes) == ["F0", "F3", "F7+"]
  widths = [line.get_linewidth() for line in axes.lines]
  assert widths[0] > widths[1] > widths[2]  # the first lies below
  assert axes.lines[2].get_ydata().tolist() == [1.6, 1.6, 1.6, 0.8, 0.4, 0.4]
  assert tick_labels(axes.yaxis) == ["0.4", "0.8", "1.6"]
  # Where a better rate may lie beyond those tried, an arrow points there.
  table = table[table["model"] == "F0"]
  table["edge"] = ["lower", "upper", "only", "", "upper", ""]
  (axes,) = plots.plot_rates(table, labels=LABELS).axes
  lower, upper, only = (c.get_offsets().tolist() for c in axes.collections)
  assert lower == [[0.25, 1.6]] and only == [[1, 1.6]]
  assert upper == [[0.5, 1.6], [4, 1.6]]


def test_references_are_stars():
  names = {
    "tpu_v4_core_hours": "compute",
    "imagenet_top1_error_percent": "loss",
  }
  table = paper_data.imagenet_errors().rename(columns=names)
  ours = table["model"].isin(SIX)
  axes = losses(table[ours], references=table[~ours])
  assert legend(axes) == [*SIX[1:], *table[~ours]["model"]]
  stars = axes.lines[5:]
  assert {star.get_marker() for star in stars} == {"*"}
  assert len({to_rgba(star.get_color()) for star in stars}) == 4
  # The stars are inside too.
  assert axes.get_xlim()[1] > 276_000 and axes.get_ylim()[0] < 9.55


def test_tuning_marks_the_best_and_what_diverged():
  trials = pd.DataFrame(
    {"curve": "a", "rate": [0.2, 0.1, 0.4], "loss": [1.0, 2.0, np.nan]}
  )
  (axes,) = plots.plot_tuning(trials, labels=LABELS).axes
  curve, best, diverged = axes.lines
  assert curve.get_xdata().tolist() == [0.1, 0.2]
  assert best.get_xydata().tolist() == [[0.2, 1.0]]
  assert diverged.get_xydata().tolist() == [[0.4, 2.0]]


def test_learning_curves_have_a_line_per_run():
  curves = pd.DataFrame(
    {
      "run": ["r1", "r1", "r2", "r2"],
      "model": ["a", "a", "b", "b"],
      "step": [1, 2, 1, 2],
      "loss": [3.0, 2.0, 2.5, 1.5],
    }
  )
  labels = {"step": "step", "loss": "loss"}
  (axes,) = plots.plot_learning_curves(curves, labels=labels).axes
  assert legend(axes) == ["a", "b"]
  assert axes.lines[0].get_ydata().tolist() == [3.0, 2.0]


def test_writes_the_figures_of_a_study(tmp_path):
  fits = fit_quickly(known_table(), resamples=1)
  paths = plots.write_study_figures(fits, COLUMNS, str(tmp_path))
  names = ["loss.png", "rates.png", "allocation.png"]
  assert [path.rpartition("/")[2] for path in paths] == names
  figure = plots.plot_allocation(fits, labels=vars(COLUMNS))
  left, right = figure.axes
  assert legend(left)[:2] == ["n0", "n1"]
  assert "best size" in legend(left)[-1]
  assert "best epochs" in legend(right)[-1]


@pytest.mark.parametrize(
  "rows, rate, figures", [(0, 0.1, 0), (1, 0.1, 3), (1, None, 2)]
)
def test_plots_a_study_that_has_just_begun(rows, rate, figures, tmp_path):
  fits = fit_quickly(known_table(sizes=[0]).iloc[:rows].assign(rate=rate))
  paths = plots.write_study_figures(fits, COLUMNS, str(tmp_path))
  assert len(paths) == figures
