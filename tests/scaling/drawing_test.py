import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from nfnets_tf.scaling import drawing


def test_a_picture_is_a_png_of_its_size(tmp_path):
  path = str(tmp_path / "p.png")
  with drawing.picture(path, width=3, height=2, columns=2) as axes:
    assert len(axes) == 2
    axes[0].plot([1, 2], [3, 4])
  image = tf.io.decode_png((tmp_path / "p.png").read_bytes()).numpy()
  assert image.shape[:2] == (240, 360)
  assert image.min() < 50 and image.max() == 255  # neither white nor black


def test_a_drawing_that_fails_writes_no_picture(tmp_path):
  with pytest.raises(ZeroDivisionError):
    with drawing.picture(str(tmp_path / "p.png"), width=3, height=2):
      1 / 0  # noqa: B018
  assert not any(tmp_path.iterdir())


def test_a_picture_leaves_matplotlibs_style_alone(tmp_path, monkeypatch):
  monkeypatch.setitem(matplotlib.rcParams, "axes.grid", False)
  before = dict(matplotlib.rcParams)
  with drawing.picture(str(tmp_path / "p.png"), width=3, height=2):
    assert matplotlib.rcParams["axes.grid"]
  assert dict(matplotlib.rcParams) == before


def test_models_look_different_and_the_same_in_every_picture():
  models = [f"m{i}" for i in range(11)]
  found = drawing.looks(models)
  assert list(found) == models and found == drawing.looks(iter(models))
  assert len({look["marker"] for look in found.values()}) == 11
  colours = [look["color"] for look in found.values()]
  assert len(set(colours)) == 11
  # From dark to light, so that they can be told apart in grey.
  assert np.diff([sum(colour[:3]) for colour in colours]).min() > 0
  assert drawing.looks([]) == {} and len(drawing.looks(range(30))) == 30


def axes():
  return Figure().subplots()


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_logarithmic_axis_shows_the_values_with_a_margin(which):
  one = axes()
  drawing.logarithmic(one, which, [400.0, np.nan, 1e5, 0.0, -3.0, np.inf])
  axis = getattr(one, f"{which}axis")
  low, high = axis.get_view_interval()
  assert axis.get_scale() == "log"
  assert 300 < low < 400 and 1e5 < high < 1.3e5
  labels = [axis.get_major_formatter()(t, 0) for t in axis.get_majorticklocs()]
  assert labels[:2] == ["500", "1k"] and labels[-1] == "64k"
  assert not len(axis.get_minorticklocs())
  other = one.yaxis if which == "x" else one.xaxis
  assert other.get_scale() == "linear"


@pytest.mark.parametrize("values", [[], [np.nan], [0.0, -1.0]], ids=str)
def test_an_axis_without_values_stays_as_it_is(values):
  one = axes()
  drawing.logarithmic(one, "x", values)
  assert one.get_xscale() == "linear"


def test_an_axis_of_a_single_value_has_it_in_the_middle():
  one = axes()
  drawing.logarithmic(one, "x", [5.0])
  low, high = one.get_xlim()
  assert low < 5 < high and one.xaxis.get_majorticklocs().tolist() == [5]


@pytest.mark.parametrize(
  "values, expected",
  [
    ([5.0], [5]),
    ([1.6, 0.8, 1.6, 0.4], [0.4, 0.8, 1.6]),  # few different ones: themselves
    ([1, 2, 3, 3.5], [1, 1.5, 2, 2.5, 3, 3.5]),
    ([2.339, 2.985], [2.4, 2.5, 2.6, 2.7, 2.8, 2.9]),
    ([3, 3.1], [3, 3.025, 3.05, 3.075, 3.1]),
    ([3, 15], [4, 8]),
    ([400, 1e5], [500 * 2**i for i in range(8)]),
    ([1e3, 1e9], [10.0**i for i in range(3, 10)]),
    ([1e10, 1e23], [10.0**i for i in range(10, 23, 2)]),
  ],
  ids=str,
)
def test_ticks_are_few_and_round(values, expected):
  found = drawing.ticks(values)
  assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_there_are_two_to_eleven_ticks_inside_the_values(seed):
  generator = np.random.default_rng(seed)
  for _ in range(50):
    low = 10.0 ** generator.uniform(-6, 22)
    high = low * 10.0 ** generator.uniform(0.002, 14)
    found = drawing.ticks([low, high])
    assert 1 <= len(found) <= 11
    assert low * (1 - 1e-6) <= found[0] and found[-1] <= high * (1 + 1e-6)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
  "value, expected",
  [
    (0.25, "0.25"),
    (1e-5, "1e-05"),
    (0.1 + 0.2, "0.3"),
    (999.0, "999"),
    (1e3, "1k"),
    (16_000, "16k"),
    (5e8, "500M"),
    (1.5e9, "1.5G"),
    (9e12, "9T"),
    (1e13, "$10^{13}$"),
    (1e23, "$10^{23}$"),
    (3.2e22, r"$3.2\times10^{22}$"),
    (3.25e22, r"$3.25\times10^{22}$"),
    (9.9999e22, "$10^{23}$"),
  ],
)
def test_numbers_are_written_as_one_says_them(value, expected):
  assert drawing.plain(value) == expected


def test_an_axis_says_the_unit_or_else_the_name():
  assert drawing.label("flops") == "training FLOPs"
  assert drawing.label("tpu_v4_core_hours") == "TPU-v4 core-hours"
  assert drawing.label("accuracy") == "accuracy"
