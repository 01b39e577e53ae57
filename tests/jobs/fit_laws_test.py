"""The law of any table, by the entry point's job."""

import json

import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.fit_laws import FitLawsJob
from nfnets_tf.jobs.job import RunContext
from tests.support.tables import known_table as known

NAMES = {
  "loss": "heldout_loss",
  "net": "VARIANT",
  "epochs": "EPOCHS",
  "rate": "PEAK_LR",
}


def job(table) -> FitLawsJob:
  params = [f"TABLE = {str(table)!r}", "fit_laws.FitLawsJob.resamples = 10"]
  return Configuration(["gin/fit_laws.gin"], params).build_job()


def run(table, workdir):
  return job(table).run(RunContext(str(workdir), "A = 1\n"))


def test_a_table_becomes_laws_and_pictures(tmp_path):
  known().rename(columns=NAMES).to_csv(tmp_path / "t.csv", index=False)
  work = tmp_path / "work"
  said = run(tmp_path / "t.csv", work)
  assert "48, " in said and "laws.json" in said
  assert {path.name for path in work.iterdir()} == {
    "laws.json",
    "loss.png",
    "rates.png",
    "allocation.png",
    "config.gin",
  }
  told = json.loads((work / "laws.json").read_text())
  assert told["power_law"]["b"]["value"] == pytest.approx(0.15, abs=0.01)
  assert (work / "config.gin").read_text() == "A = 1\n"


def test_the_plan_names_the_table(tmp_path):
  assert str(tmp_path / "t.csv") in job(tmp_path / "t.csv").plan()


def test_a_table_that_does_not_exist(tmp_path):
  with pytest.raises(UserError, match="no.csv' does not exist; bind it to a"):
    run(tmp_path / "no.csv", tmp_path / "work")
  assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3,4\n1\n", "\0\0"])
def test_a_file_that_is_no_table(tmp_path, content):
  (tmp_path / "t.csv").write_text(content)
  with pytest.raises(UserError, match="t.csv' is no table|has no column"):
    run(tmp_path / "t.csv", tmp_path / "work")


def test_a_table_without_a_column(tmp_path):
  known().to_csv(tmp_path / "t.csv", index=False)
  with pytest.raises(UserError, match="no column 'heldout_loss', only flops"):
    run(tmp_path / "t.csv", tmp_path / "work")


def test_a_table_of_one_row_is_told(tmp_path):
  table = known().rename(columns=NAMES).iloc[:1]
  table.to_csv(tmp_path / "t.csv", index=False)
  said = run(tmp_path / "t.csv", tmp_path / "work")
  assert "not enough points" in said
