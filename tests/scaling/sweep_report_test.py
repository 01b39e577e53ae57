"""The report of a sweep, in all its states."""

import dataclasses
import html.parser
import json
import logging
import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.sweep_report import SweepReport
from nfnets_tf.scaling.sweep_store import DONE, FAILED, SweepStore
from nfnets_tf.scaling.sweep_tables import summarize
from tests.support import sweeps

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
  """Tags, attributes and text of a page; its tags must be balanced."""

  def __init__(self, content):
    super().__init__()
    self.tags, self.texts, self._open = [], [], []
    self.feed(content)
    assert not self._open
    self.text = " ".join(" ".join(self.texts).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  def count(self, tag):
    return sum(name == tag for name, _ in self.tags)

  def refreshes(self):
    return any(a.get("http-equiv") == "refresh" for _, a in self.tags)


@pytest.fixture
def store(tmp_path):
  return SweepStore(str(tmp_path))


@pytest.fixture(autouse=True)
def warnings(caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  return caplog


def render(status, **options):
  given = {"resamples": 2, "seed": 0, "refresh_seconds": 30, **options}
  return SweepReport(**given).render(status)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished study with two learning curves."""
  folder = tmp_path_factory.mktemp("finished")
  store = SweepStore(str(folder))
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(store, sweep)
  status = sweeps.status_of(store, sweep)
  files = {}
  for name in ("VARIANT=W8,EPOCHS=1", "VARIANT=W64,EPOCHS=2"):
    trial = f"{name},PEAK_LR=0.1"
    assert trial in set(status.results["point"])
    files[trial] = str(folder / f"{name}.jsonl")
    with open(files[trial], "w") as file:
      for step in (10, 20, 30):
        file.write(json.dumps({"step": step, "heldout_loss": 9 / step}) + "\n")
  files["VARIANT=W8,EPOCHS=4,PEAK_LR=0.1"] = str(folder / "no.jsonl")
  return dataclasses.replace(
    status, name="a <sweep> & more", metrics_files=files
  )


@pytest.fixture(scope="module")
def report():
  return SweepReport(resamples=2, seed=0, refresh_seconds=30)


@pytest.fixture(scope="module")
def finished_page(finished, report):
  return report.render(finished)


def test_finished_study_has_all_sections(finished_page):
  page = Page(finished_page)
  # Loss, learning curves, best rate, allocation, and a search per size.
  assert page.count("svg") == page.count("figure") == 8
  assert "60 of 60" in page.text and "20 of 20" in page.text
  assert "2 min 0 s" in page.text and "a <sweep> & more" in page.text
  assert "L = " in page.text and "size ~ C^" in page.text
  assert "TPU-v4 core-hours" in page.text and "total" in page.text
  assert not page.refreshes()
  assert page.count("tr") > 60 + 20 + 4


def test_page_is_self_contained(finished_page):
  for tag, attributes in Page(finished_page).tags:
    assert tag not in ("link", "img", "iframe", "script")
    for name in ("src", "href", "xlink:href"):
      assert attributes.get(name, "#").startswith("#"), attributes
  ids = re.findall(r'\bid="([^"]+)"', finished_page)
  assert len(ids) == len(set(ids))
  assert set(re.findall(r'(?:url\(|href=")#([^")]+)', finished_page)) <= {*ids}
  assert len(finished_page) < 1_000_000


def test_summary_has_the_best_trial_of_each_grid_point(finished):
  summary = summarize(finished)
  assert len(summary.trials) == 60
  assert len(summary.best) == len(summary.points) == 20
  for point in summary.points.itertuples():
    trials = summary.trials[summary.trials["grid_point"] == point.grid_point]
    assert len(trials) == 3 and point.rate == 0.1
    assert point.loss == trials["loss"].min()
    assert not point.edge and not point.open
  assert summary.counts()["done"] == 60
  assert summary.points["model"].unique().tolist() == [*sweeps.SIZES]
  assert summary.x_macro == "EPOCHS"


def test_refreshes_while_trials_are_left(store, warnings):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  sweeps.finish(store, sweep, sweep.points[:5])
  status = sweeps.status_of(store, sweep)
  page = Page(render(status))
  assert page.refreshes() and "refreshes every 30 s" in page.text
  assert "15 of 30" in page.text and "15 pending" in page.text
  assert summarize(status).points["open"].sum() == 15 and not warnings.records
  assert len(summarize(status).decided_runs()) == 15


def test_no_refresh_on_request(store):
  sweep = sweeps.make_sweep(sweeps.study_grid())
  page = render(sweeps.status_of(store, sweep), refresh_seconds=None)
  assert not Page(page).refreshes()


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_reports_a_sweep_that_has_just_begun(
  store, warnings, tuned, plan, done
):
  sweep = sweeps.make_sweep(sweeps.study_grid(), tuned=tuned)
  sweeps.finish(store, sweep, sweep.points[:done], plan=plan)
  text = Page(render(sweeps.status_of(store, sweep))).text
  assert not warnings.records
  assert ("No trial has finished yet." in text) == (done == 0)
  assert ("There is no plan.csv" in text) == (not plan)
  assert "ot enough points" in text


@pytest.mark.parametrize(
  "grid",
  [
    [{"SEED": 0}, {"SEED": 1}],
    [{"STRATEGY": "a $x$"}, {"STRATEGY": "b"}],
    [{"A": 1, "B": "x"}, {"A": 2, "B": "y"}],
    [{"ONLY": 1}],
  ],
  ids=str,
)
def test_axes_may_be_any(store, warnings, grid):
  sweep = sweeps.make_sweep(grid, tuned=False)
  for number, point in enumerate(sweep.points):
    (trial,) = sweep.next_trials(point, {})
    store.finish(trial, DONE, result={"heldout_loss": 1.0 + number}, seconds=1)
  page = Page(render(sweeps.status_of(store, sweep)))
  assert page.count("svg") == 1 and not warnings.records


def test_best_without_a_neighbor_is_an_edge(finished):
  first = finished.results["grid_point"].iloc[0]
  results = finished.results[finished.results["grid_point"] == first]
  status = dataclasses.replace(finished, results=results.iloc[:1])
  points = summarize(status).points.set_index("grid_point")
  assert points.at[first, "edge"] == "only"


def test_diverged_trials_have_no_loss_but_count_as_tried(finished):
  first = finished.results["grid_point"].iloc[0]
  results = finished.results[finished.results["grid_point"] == first].copy()
  results = results.sort_values("PEAK_LR").reset_index(drop=True)
  # The highest rate diverged, the lowest failed for another reason.
  results["state"] = [FAILED, DONE, FAILED]
  results["reason"] = ["disk", None, "nan"]
  results["diverged"] = [False, False, True]
  status = dataclasses.replace(finished, results=results)
  summary = summarize(status)
  assert summary.trials["loss"].notna().tolist() == [False, True, False]
  edges = summary.points.set_index("grid_point")["edge"]
  assert edges[first] == "lower"  # between the failed and the diverged trial


def test_failures_are_shown_in_full_and_escaped(finished):
  results = finished.results.iloc[:3].copy().reset_index(drop=True)
  reason = "the <disk> is full & " + 100 * "far " + "away"
  results["state"], results["reason"] = [FAILED, FAILED, DONE], reason
  results["diverged"] = [False, True, False]
  status = dataclasses.replace(
    finished, results=results, config_text="A = '</pre><b>'\n"
  )
  text = Page(render(status)).text
  assert text.count(reason) == 2 and "A = '</pre><b>'" in text
  assert "Diverged" in text and "--points=failed" in text


def test_figure_that_fails_leaves_the_rest_and_laws_are_cached(
  finished, finished_page, report, warnings, tmp_path, monkeypatch
):
  path = tmp_path / "bad.jsonl"
  path.write_text("not JSON\n")
  trial = "VARIANT=W16,EPOCHS=1,PEAK_LR=0.1"
  status = dataclasses.replace(finished, metrics_files={trial: str(path)})
  monkeypatch.setattr(
    "nfnets_tf.scaling.sweep_report.fit_study",
    lambda *args, **options: pytest.fail("fitted the same runs again"),
  )
  page = Page(report.render(status))
  assert page.count("svg") == 7 and "Learning curves" in warnings.text
  assert "size ~ C^" in page.text


def test_names_an_impossible_trial_once(finished, warnings, tmp_path):
  results = finished.results.copy()
  worst = results["flops"].idxmin()
  results.loc[worst, "heldout_loss"] = 0.02
  status = dataclasses.replace(finished, results=results)
  report = SweepReport(resamples=2, seed=0, refresh_seconds=None)
  page = Page(report.render(status))
  name = results.loc[worst, "point"]
  assert f"{name} is an outlier" in page.text
  status = dataclasses.replace(status, results=results.iloc[:-1])
  report.render(status)
  assert warnings.text.count(f"{name} is an outlier") == 1


def test_failure_to_write_does_not_end_the_sweep(store, warnings, tmp_path):
  status = sweeps.status_of(store, sweeps.make_sweep(sweeps.study_grid()))
  path = tmp_path / "report.html"
  path.mkdir()
  report = SweepReport(resamples=5, seed=0, refresh_seconds=None)
  report(status, str(path))
  assert "report.html was not written" in warnings.text
  report(status, str(tmp_path / "other.html"))
  assert Page((tmp_path / "other.html").read_text()).count("h1") == 1
  assert not [n for n in os.listdir(tmp_path) if n.endswith(".partial")]


@pytest.mark.parametrize(
  "options", [{"resamples": 0}, {"seed": -1}, {"refresh_seconds": 0}]
)
def test_refuses_numbers_out_of_range(options):
  with pytest.raises(UserError, match="SweepReport"):
    SweepReport(**{"resamples": 5, "seed": 0, "refresh_seconds": 1, **options})


def test_missing_columns_are_not_a_number(store):
  sweep = sweeps.make_sweep(sweeps.study_grid(), tuned=False)
  sweeps.finish(store, sweep, plan=False)
  summary = summarize(sweeps.status_of(store, sweep))
  assert np.isnan(summary.points["compute"]).all()
  assert pd.isna(summary.trials["rate"]).all()
  assert summary.points["loss"].notna().all()


@pytest.mark.soak
def test_browser_shows_the_figures(finished_page, tmp_path):
  names = ("chromium", "chromium-browser", "google-chrome")
  browser = next(filter(None, map(shutil.which, names)), None)
  if browser is None:
    pytest.skip("no chromium on this machine")
  measure = """<script>addEventListener("load", () => {
    document.body.dataset.drawn =
      [...document.querySelectorAll("figure svg")].map(svg => {
        const box = svg.getBoundingClientRect();
        const paths = [...svg.querySelectorAll('g[id*="line2d"] path')];
        const length = Math.max(0, ...paths.map(p => p.getTotalLength()));
        return [box.width, box.height, length].map(Math.round).join("x");
      }).join(" ");
  });</script></body>"""
  page = finished_page.replace(
    "style-src", "script-src 'unsafe-inline'; style-src"
  )
  path = tmp_path / "page.html"
  path.write_text(page.replace("</body>", measure))
  content = subprocess.run(
    [
      browser,
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      f"--user-data-dir={tmp_path / 'profile'}",
      "--dump-dom",
      path.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  ).stdout
  sizes = re.search(r'data-drawn="([^"]*)"', content)[1].split()
  assert len(sizes) == 8
  for size in sizes:
    width, height, length = map(int, size.split("x"))
    assert width > 200 and height > 100 and length > 50, sizes
