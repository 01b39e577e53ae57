"""Jobs on an existing run take its configuration first."""

import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError

EXPORT = "gin/export.gin"


@pytest.fixture
def run(tmp_path):
  """A work directory as a run on the digits leaves it."""
  folder = tmp_path / "digits"
  (folder / "checkpoints").mkdir(parents=True)
  params = ["EPOCHS = 3", "NUM_CLASSES = 7"]
  text = Configuration(["gin/quickstart.gin"], params).text
  (folder / "config.gin").write_text(text)
  return folder


@pytest.mark.parametrize("below", ["", "/checkpoints", "/checkpoints/ckpt-7"])
def test_the_runs_configuration_is_read_first(run, below):
  configuration = Configuration(
    [EXPORT], [f"CHECKPOINT = '{run}{below}'", "SEED = 5"]
  )
  assert configuration.run_folder == configuration.workdir == str(run)
  statements = configuration.statements
  assert statements["NUM_CLASSES"] == "7" and statements["SEED"] == "5"
  configuration.build_job()
  differences = configuration.differences()
  assert "SEED = 5  (base: 0)" in differences
  assert not any(line.startswith("NUM_CLASSES") for line in differences)


def test_a_macro_may_refer_to_another(run):
  params = ["CHECKPOINT = %MINE", f"MINE = '{run}'"]
  assert Configuration([EXPORT], params).run_folder == str(run)


def test_weights_from_elsewhere_need_a_gin_file_of_a_run(tmp_path):
  weights = tmp_path / "F0_haiku.npz"
  configuration = Configuration(
    ["gin/finetune_imagenet.gin", EXPORT],
    [f"CHECKPOINT = '{weights}'", "WEIGHTS = None", "VARIANT = 'F0'"],
  )
  assert configuration.run_folder is None
  assert configuration.workdir == "runs/finetune_imagenet"
  configuration.build_job()


def test_path_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match="not in the work directory.*name a"):
    Configuration([EXPORT], [f"CHECKPOINT = '{tmp_path}/F0_haiku.npz'"])
  with pytest.raises(UserError, match="CHECKPOINT is not set"):
    Configuration([EXPORT])
  for value in ("7", "@export_checkpoint.ExportJob()", "%DTYPES"):
    with pytest.raises(UserError, match="is not a checkpoint; expected a path"):
      Configuration([EXPORT], ["DTYPES = [1]", f"CHECKPOINT = {value}"])


def test_a_run_of_another_release_is_refused(tmp_path):
  # Its config.gin names modules that do not exist any more.
  (tmp_path / "config.gin").write_text("from nfnets_tf.train import jobs\n")
  (tmp_path / "data.json").write_text('{"parts": 1}')
  with pytest.raises(UserError, match="has layout 1 .* expected layout 2"):
    Configuration([EXPORT], [f"CHECKPOINT = '{tmp_path}'"])


def test_a_sweeps_directory_is_not_a_runs(tmp_path):
  text = Configuration(["gin/sweeps/jft.gin"]).text
  (tmp_path / "config.gin").write_text(text)
  with pytest.raises(UserError, match="of a sweep.*one of the points"):
    Configuration([EXPORT], [f"CHECKPOINT = '{tmp_path}'"])
