"""The paper's figures, by the entry point's job."""

import csv
import json

import matplotlib.image
import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.paper_figures import PaperFiguresJob


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  """(the folder of the job's files, what it said)."""
  workdir = tmp_path_factory.mktemp("paper")
  params = ["paper_figures.PaperFiguresJob.resamples = 20"]
  job = Configuration(["gin/paper_figures.gin"], params).build_job()
  assert isinstance(job, PaperFiguresJob) and "2310.16764" in job.plan()
  said = job.run(RunContext(str(workdir), ""))
  return workdir, said


@pytest.mark.parametrize("name", ["fig1", "fig2", "fig3", "allocation"])
def test_a_figure_is_drawn(drawn, name):
  image = matplotlib.image.imread(drawn[0] / f"{name}.png")
  assert image.shape[1] > 600 and image.std() > 0.05


def test_the_laws_are_written_with_their_intervals(drawn):
  told = json.loads((drawn[0] / "laws.json").read_text())
  low, high = told["power_law"]["b"]["interval"]
  assert low < 0.043 < high and 0.038 < low and high < 0.048
  for size in ("allocation", "allocation_by_macs"):
    assert told[size]["size_exponent"]["interval"]
  # With MACs as the size, compute is all but size times epochs.
  by_macs = told["allocation_by_macs"]
  sum_of_both = sum(
    by_macs[f"{name}_exponent"]["value"] for name in ("size", "epochs")
  )
  assert sum_of_both == pytest.approx(1.0, abs=0.05)


def test_the_hours_of_all_points_are_predicted(drawn):
  with open(drawn[0] / "predicted_core_hours.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 36
  for row in rows:
    hours, by_model = float(row["tpu_v4_core_hours"]), float(row["by_model"])
    error = float(row["by_model_error"])
    assert by_model / hours - 1.0 == pytest.approx(error, abs=1e-3)
    assert abs(error) < 0.05
  told = json.loads((drawn[0] / "laws.json").read_text())["core_hours"]
  assert 0.28 < told["utilisation"]["F0"] < told["utilisation"]["F7+"] < 0.38
  assert told["errors"]["by FLOPs alone"]["most"] < 0.15


def test_the_main_numbers_are_said(drawn):
  assert "L = 3.85" in drawn[1] and "hours by model" in drawn[1]
