import json

import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.jobs.build_shards import BuildShardsJob
from nfnets_tf.jobs.job import RunContext
from tests.support.datasets import SmoothImages, make_builder


def run(job, workdir):
  return job.run(RunContext(str(workdir), "# none\n"))


def test_plans_builds_and_reports(tmp_path):
  builder = make_builder(tmp_path / "shards", exclude=SmoothImages(1, first=20))
  job = BuildShardsJob(builder=builder)
  assert "22 images in 5 shards" in job.plan()
  assert "near-duplicates of 1 images" in job.plan()
  assert list(tmp_path.iterdir()) == []
  summary = run(job, tmp_path / "work")
  assert "19 images" in summary and "1 image not decodable" in summary
  assert "1 near-duplicates" in summary
  assert (tmp_path / "work" / "config.gin").exists()
  with open(tmp_path / "work" / "result.json") as file:
    assert json.load(file)["near_duplicates"] == ["20.jpg"]
  assert run(job, tmp_path / "work") == summary


def test_rejected_directory_leaves_the_workdir_empty(tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "file").touch()
  job = BuildShardsJob(builder=make_builder(tmp_path / "mine"))
  with pytest.raises(UserError, match="holds other files"):
    run(job, tmp_path / "work")
  assert not (tmp_path / "work").exists()
