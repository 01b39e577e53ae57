"""The jobs that fit the scaling laws to any table and to the paper's points."""

import csv
import json

import matplotlib.image
import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.scaling_laws import FitLawsJob, PaperFiguresJob
from tests.support.tables import VIT, known_table, sparse_table

NAMES = {
  "loss": "heldout_loss",
  "net": "VARIANT",
  "epochs": "EPOCHS",
  "rate": "PEAK_LR",
}


def make_job(table) -> FitLawsJob:
  params = [f"TABLE = {str(table)!r}", "scaling_laws.FitLawsJob.resamples = 2"]
  return Configuration(["gin/fit_laws.gin"], params).build_job()


def run(table, workdir):
  return make_job(table).run(RunContext(str(workdir), "A = 1\n"))


def test_fits_and_plots_a_table(tmp_path):
  known_table().rename(columns=NAMES).to_csv(tmp_path / "t.csv", index=False)
  workdir = tmp_path / "work"
  summary = run(tmp_path / "t.csv", workdir)
  assert "48, " in summary and "laws.json" in summary
  assert {path.name for path in workdir.iterdir()} == {
    "laws.json",
    "loss.png",
    "rates.png",
    "allocation.png",
    "config.gin",
  }
  laws = json.loads((workdir / "laws.json").read_text())
  assert laws["power_law"]["b"]["value"] == pytest.approx(0.15, abs=0.01)
  assert (workdir / "config.gin").read_text() == "A = 1\n"


def test_names_an_impossible_run_of_a_spreadsheet(tmp_path):
  table = known_table(sizes=range(4), budgets=range(5)).rename(columns=NAMES)
  cheapest = table["flops"].idxmin()
  table.loc[cheapest, "heldout_loss"] = 0.02
  text = table.to_csv(index=False, sep=";", decimal=",")
  (tmp_path / "t.csv").write_text("\ufeff" + text, encoding="utf-8")
  summary = run(tmp_path / "t.csv", tmp_path / "work")
  laws = json.loads((tmp_path / "work" / "laws.json").read_text())
  # The next best rate of that point is 10 % off, and named too.
  outlier, _ = laws["outliers"]
  assert outlier["name"] in summary and outlier["loss"] == 0.02
  assert laws["power_law"]["b"]["value"] == pytest.approx(0.15, abs=0.02)


def test_refuses_a_folder(tmp_path):
  with pytest.raises(UserError, match="is a folder"):
    run(tmp_path, tmp_path / "work")


def test_plan_names_the_table(tmp_path):
  assert str(tmp_path / "t.csv") in make_job(tmp_path / "t.csv").plan()


def test_reports_missing_table(tmp_path):
  with pytest.raises(UserError, match="no.csv' does not exist"):
    run(tmp_path / "no.csv", tmp_path / "work")
  assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3,4\n1\n", "\0\0"])
def test_reports_file_that_is_not_a_table(tmp_path, content):
  (tmp_path / "t.csv").write_text(content)
  with pytest.raises(UserError, match="not a CSV table|has no column"):
    run(tmp_path / "t.csv", tmp_path / "work")


def test_reports_missing_column(tmp_path):
  known_table().to_csv(tmp_path / "t.csv", index=False)
  with pytest.raises(UserError, match="no column 'heldout_loss'"):
    run(tmp_path / "t.csv", tmp_path / "work")


def test_reports_too_few_points(tmp_path):
  table = known_table().rename(columns=NAMES).iloc[:1]
  table.to_csv(tmp_path / "t.csv", index=False)
  assert "not enough points" in run(tmp_path / "t.csv", tmp_path / "work")


def make_sparsity_job(table):
  quick = ["FitOptions.resamples = 0", "FitOptions.starts = 5"]
  params = [f"TABLE = {str(table)!r}", *(f"sparsity_fit.{x}" for x in quick)]
  return Configuration(["gin/fit_sparsity_law.gin"], params).build_job()


def test_fits_and_plots_the_law_of_sparsity(tmp_path):
  path, workdir = tmp_path / "t.csv", tmp_path / "work"
  sparse_table(noise=0.003).to_csv(path, index=False, sep=";", decimal=",")
  job = make_sparsity_job(path)
  assert str(path) in job.plan() and "huber_delta" in job.plan()
  summary = job.run(RunContext(str(workdir), "A = 1\n"))
  assert "held back" not in summary and "most expensive point" in summary
  assert {path.name for path in workdir.iterdir()} == {
    "laws.json",
    "optimal_sparsity.csv",
    "loss.png",
    "optimal_sparsity.png",
    "fit.png",
    "config.gin",
  }
  # Without resamples there are no intervals: null, as NaN is no JSON.
  text = (workdir / "laws.json").read_text()
  laws = json.loads(text, parse_constant=pytest.fail)
  assert laws["held_back"]["points"][0]["low"] is None
  law = laws["laws"]["unstructured"]
  assert law["b_N"]["interval"] is None
  assert law["b_N"]["value"] == pytest.approx(VIT.b_N, rel=0.1)
  assert laws["training_cost"] == {"flops": 6, "mean_sparsity": 0.625}
  for name in ("loss", "optimal_sparsity", "fit"):
    image = matplotlib.image.imread(workdir / f"{name}.png")
    assert image.shape[1] > 600 and image.std() > 0.05


def test_a_table_that_determines_no_law_leaves_no_files(tmp_path):
  sparse_table(sparsities=[0.5]).to_csv(tmp_path / "t.csv", index=False)
  with pytest.raises(UserError, match="does not determine the law"):
    make_sparsity_job(tmp_path / "t.csv").run(
      RunContext(str(tmp_path / "work"), "")
    )
  assert not (tmp_path / "work").exists()


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
  """(work directory, summary) of the paper's figures."""
  workdir = tmp_path_factory.mktemp("paper")
  params = ["scaling_laws.PaperFiguresJob.resamples = 10"]
  job = Configuration(["gin/paper_figures.gin"], params).build_job()
  assert isinstance(job, PaperFiguresJob) and "2310.16764" in job.plan()
  return workdir, job.run(RunContext(str(workdir), ""))


@pytest.mark.parametrize("name", ["fig1", "fig2", "fig3", "allocation"])
def test_plots_the_papers_figures(paper, name):
  image = matplotlib.image.imread(paper[0] / f"{name}.png")
  assert image.shape[1] > 600 and image.std() > 0.05


def test_fits_the_papers_law(paper):
  laws = json.loads((paper[0] / "laws.json").read_text())
  low, high = laws["power_law"]["b"]["interval"]
  assert low < 0.043 < high and 0.038 < low and high < 0.048
  for size in ("allocation", "allocation_by_macs"):
    assert laws[size]["size_exponent"]["interval"]
  # With MACs as the size, compute is nearly size times epochs.
  by_macs = laws["allocation_by_macs"]
  exponents = [by_macs[f"{n}_exponent"]["value"] for n in ("size", "epochs")]
  assert sum(exponents) == pytest.approx(1.0, abs=0.05)
  assert "L = 3.85" in paper[1]


def test_predicts_the_papers_core_hours(paper):
  with open(paper[0] / "predicted_core_hours.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 36
  for row in rows:
    hours, by_model = float(row["tpu_v4_core_hours"]), float(row["by_model"])
    error = float(row["by_model_error"])
    assert by_model / hours - 1.0 == pytest.approx(error, abs=1e-3)
    assert abs(error) < 0.05
  hours = json.loads((paper[0] / "laws.json").read_text())["core_hours"]
  utilization = hours["utilization"]
  assert 0.28 < utilization["F0"] < utilization["F7+"] < 0.38
  assert hours["errors"]["by FLOPs alone"]["most"] < 0.15
  assert "hours by model" in paper[1]
