import pytest

from nfnets_tf.config import Configuration, sources
from nfnets_tf.config.sources import (
  base_run,
  find,
  includes_of,
  known_files,
  places,
)
from nfnets_tf.errors import UserError

EXPORT = "gin/export.gin"


@pytest.fixture
def run(tmp_path):
  """A folder as a run on the digits leaves it."""
  folder = tmp_path / "digits"
  (folder / "checkpoints").mkdir(parents=True)
  given = ["EPOCHS = 3", "NUM_CLASSES = 7"]
  text = Configuration(["gin/quickstart.gin"], given).text
  (folder / "config.gin").write_text(text)
  return folder


def test_files_are_found_here_and_in_the_project(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert find("gin/quickstart.gin") == sources.ROOT / "gin/quickstart.gin"
  (tmp_path / "own.gin").touch()
  assert find("own.gin").resolve() == tmp_path / "own.gin"
  assert find("gin") is None and find("no.gin") is None
  assert "gin/models/f7plus.gin" in known_files()
  assert includes_of("gin/quickstart.gin")[0] == "gin/recipes/small.gin"


def test_what_was_set_last_is_named_with_its_line(tmp_path):
  file = tmp_path / "a.gin"
  file.write_text("include 'gin/models/nano.gin'\nA = 1\nb.C:\n  d = 2\n")
  found = places([str(file)], ["A = 3"])
  assert found["VARIANT"] == "gin/models/nano.gin, line 2"
  assert found["b.C.d"] == f"{file}, line 4"
  assert found["A"] == "--gin_param='A = 3'"


@pytest.mark.parametrize("below", ["", "/checkpoints", "/checkpoints/ckpt-7"])
def test_what_is_done_to_a_run_takes_its_configuration_first(run, below):
  configuration = Configuration(
    [EXPORT], [f"CHECKPOINT = '{run}{below}'", "SEED = 5"]
  )
  assert configuration.run_folder == configuration.workdir == str(run)
  job = configuration.build_job()
  assert job.training.num_classes == 7 and job.training.seed == 5
  assert job.start.path == f"{run}{below}"
  assert job.training.network().output_shape == (None, 7)
  told = configuration.differences()
  assert "SEED = 5  (base: 0)" in told
  assert not any(line.startswith("NUM_CLASSES") for line in told)


def test_a_macro_may_be_another_ones_value(run):
  given = ["CHECKPOINT = %MINE", f"MINE = '{run}'"]
  assert Configuration([EXPORT], given).run_folder == str(run)


def test_of_weights_that_lie_elsewhere_the_run_is_named_before(tmp_path):
  weights = tmp_path / "F0_haiku.npz"
  configuration = Configuration(
    ["gin/finetune_imagenet.gin", "gin/models/f0.gin", EXPORT],
    [f"CHECKPOINT = '{weights}'", "WEIGHTS = None"],
  )
  assert configuration.run_folder is None
  assert configuration.workdir == "runs/finetune_imagenet"
  job = configuration.build_job()
  assert job.training.variant == "F0" and job.start.path == str(weights)


def test_a_path_without_a_run_says_what_to_name(tmp_path):
  with pytest.raises(UserError, match="lies in no run's work.*name a run's"):
    Configuration([EXPORT], [f"CHECKPOINT = '{tmp_path}/F0_haiku.npz'"])
  with pytest.raises(UserError, match="CHECKPOINT is not set"):
    Configuration([EXPORT])
  for value in ("7", "@export_checkpoint.ExportJob()", "%DTYPES"):
    with pytest.raises(UserError, match="is no checkpoint; expected a path"):
      Configuration([EXPORT], ["DTYPES = [1]", f"CHECKPOINT = {value}"])


def test_a_run_without_it_has_none():
  assert base_run({}) == (None, "")
  assert base_run({"config.Launch.of_run": "None"}) == (None, "")
  assert Configuration(["gin/quickstart.gin"]).workdir == "runs/quickstart"


def test_a_sweeps_folder_is_no_runs(tmp_path):
  text = Configuration(["gin/sweeps/jft.gin"]).text
  (tmp_path / "config.gin").write_text(text)
  with pytest.raises(UserError, match="sweep's folder.*one of the points"):
    Configuration([EXPORT], [f"CHECKPOINT = '{tmp_path}'"])
