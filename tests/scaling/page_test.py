"""The report of a sweep, in all its states and in a browser."""

import dataclasses
import html.parser
import logging
import os
import re
import shutil
import subprocess

import matplotlib.image
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.page import SweepPage
from nfnets_tf.scaling.sweep_store import SweepStore, Trial, point_name
from tests.scaling import sweeps

CHROMIUM = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
]
MEASURE = """<script>addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const curves = [...svg.querySelectorAll('g[id*="curve-"] path')];
    const length = Math.max(0, ...curves.map(path => path.getTotalLength()));
    return [box.width, box.height, length].map(Math.round).join("x");
  });
  document.body.dataset.drawn = drawn.join(" ");
});</script></body>"""


class Page(html.parser.HTMLParser):
  """Text and tags of a page."""

  def __init__(self, content):
    super().__init__()
    self.tags, self.texts = [], []
    self.feed(content)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data)

  def count(self, tag):
    return sum(name == tag for name, _ in self.tags)

  def refreshes(self):
    return any(a.get("http-equiv") == "refresh" for _, a in self.tags)


@pytest.fixture
def board(tmp_path):
  return SweepStore(str(tmp_path / "a <sweep> & more"))


def write(board, sweep, configuration="A = 1\n", **options):
  given = {"resamples": 20, "seed": 0, "refresh_seconds": 30, **options}
  page = SweepPage(**given)
  os.makedirs(board.root, exist_ok=True)
  status = sweeps.status_of(board, sweep, configuration)
  page(dataclasses.replace(status, name="a <sweep> & more"), board.report)
  with open(board.report) as file:
    return Page(file.read())


def test_a_finished_study_has_all_figures_and_laws(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(board, sweep)
  page = write(board, sweep)
  # Loss, best rate, best size, best epochs, and a search for each size.
  assert page.count("svg") == page.count("figure") == 8
  text = " ".join(page.texts)
  assert "60 of 60" in text and "L = a C^-b + c" in text
  assert "2 min 0 s" in text and "size exponent" in text
  assert not page.refreshes()
  assert page.count("tr") > 60 + 20 + 20


def test_a_page_needs_nothing_but_itself(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(board, sweep)
  page = write(board, sweep)
  for tag, attributes in page.tags:
    assert tag not in ("link", "img", "iframe")
    for name in ("src", "href", "xlink:href"):
      assert attributes.get(name, "#").startswith("#"), attributes
  assert os.path.getsize(board.report) < 1_000_000
  assert os.listdir(board.root).count("report.html") == 1
  assert not [n for n in os.listdir(board.root) if n.endswith(".partial")]


def test_while_points_are_left_it_loads_itself_again(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(board, sweep, sweep.points[:5])
  page = write(board, sweep)
  assert page.refreshes() and "Hollow" not in page.texts[0]
  text = " ".join(page.texts)
  assert "15 of 30" in text and "15 pending" in text
  assert not write(board, sweep, refresh_seconds=None).refreshes()


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_sweep_that_has_just_begun_is_told(
  board, caplog, monkeypatch, tuned, plan, done
):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  sweep = sweeps.make_sweep(sweeps.study_grid(), tuned=tuned)
  sweeps.finish(board, sweep, sweep.points[:done], plan=plan)
  text = " ".join(write(board, sweep).texts)
  assert "could not be made" not in text and not caplog.records
  assert ("No point has finished yet." in text) == (done == 0)
  assert ("There is no plan.csv" in text) == (not plan)
  assert "not enough points" in text


@pytest.mark.parametrize(
  "grid",
  [
    [{"SEED": 0}, {"SEED": 1}],
    [{"STRATEGY": "a"}, {"STRATEGY": "b"}],
    [{"A": 1, "B": "x"}, {"A": 2, "B": "y"}],
    [{"ONLY": 1}],
  ],
)
def test_axes_may_be_any(board, caplog, monkeypatch, grid):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  sweep = sweeps.make_sweep(grid, tuned=False)
  for number, cell in enumerate(sweep.points):
    trial = Trial(cell.name, cell.name, cell.bindings)
    result = {"heldout_loss": 1.0 + number}
    board.finish(trial, "done", result=result, seconds=1.0)
  page = write(board, sweep)
  assert page.count("svg") == 1 and not caplog.records


def test_failures_are_told_in_full_and_escaped(board):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  reason = "the <disk> is full & " + 100 * "far " + "away"
  for name, diverged in (("0.1", False), ("6.4", True)):
    bindings = {"VARIANT": "W8", "EPOCHS": 1, "PEAK_LR": float(name)}
    trial = Trial(point_name(bindings), "VARIANT=W8,EPOCHS=1", bindings)
    board.finish(trial, "failed", reason=reason, diverged=diverged)
  page = write(board, sweep, configuration="A = '</pre><b>'\n")
  text = "".join(page.texts)
  assert text.count(reason) == 2 and "A = '</pre><b>'" in text
  assert "Diverged" in text and "--points=failed" in text
  assert "a <sweep> & more" in text


def test_a_page_that_cannot_be_written_does_not_end_the_sweep(
  board, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  sweep = sweeps.make_sweep(sweeps.study_grid())
  os.makedirs(board.report)
  page = SweepPage(resamples=5, seed=0, refresh_seconds=None)
  page(sweeps.status_of(board, sweep), board.report)
  assert "report.html could not be written" in caplog.text
  assert os.listdir(board.root) == ["report.html"]


@pytest.mark.parametrize(
  "options", [{"resamples": 0}, {"seed": -1}, {"refresh_seconds": 0}]
)
def test_numbers_that_cannot_be_used(options):
  given = {"resamples": 5, "seed": 0, "refresh_seconds": None, **options}
  with pytest.raises(UserError, match="page.SweepPage"):
    SweepPage(**given)


@pytest.fixture
def chromium():
  """Path of a browser."""
  names = ("chromium", "chromium-browser", "google-chrome")
  path = next(filter(None, map(shutil.which, names)), None)
  if path is None:
    assert not os.environ.get("CI"), "CI must look at the page"
    pytest.skip("no chromium on this machine (Debian's package chromium)")
  return path


def browse(chromium, tmp_path, *arguments):
  profile = f"--user-data-dir={tmp_path / 'profile'}"
  return subprocess.run(
    [chromium, *CHROMIUM, profile, *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  ).stdout


def test_a_browser_shows_the_figures(board, chromium, tmp_path):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(board, sweep)
  write(board, sweep)
  with open(board.report) as file:
    content = file.read()
  # The page allows nothing from elsewhere, and the test's script is inside.
  copy = tmp_path / "copy.html"
  copy.write_text(content.replace("</body>", MEASURE))
  shown = browse(chromium, tmp_path, "--dump-dom", copy.as_uri())
  drawn = re.search(r'data-drawn="([^"]*)"', shown)[1].split()
  assert len(drawn) == 8
  for figure in drawn:
    width, height, length = map(int, figure.split("x"))
    assert width > 200 and height > 100 and length > 50, drawn
  picture = tmp_path / "page.png"
  browse(
    chromium,
    tmp_path,
    "--window-size=1280,1400",
    f"--screenshot={picture}",
    copy.as_uri(),
  )
  image = matplotlib.image.imread(picture)[..., :3]
  assert image.shape[:2] == (1400, 1280)
  inked = (image.max(axis=-1) - image.min(axis=-1)) > 0.3  # colours of curves
  assert inked[350:].mean() > 0.001
