"""A sweep may grow and change hands; what its points share may not change."""

import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError

FILES = ["gin/quickstart.gin", "gin/overlays/smoke.gin", "gin/sweeps/base.gin"]
TWO = "config.grid.EPOCHS = (1, 2)"


@pytest.fixture
def resume(tmp_path):
  """Begins a sweep; returns a function that resumes it with other bindings."""
  path = tmp_path / "config.gin"

  def begin(*params):
    path.write_text(Configuration(FILES, params).text)
    return lambda *now: Configuration(FILES, now).check_workdir(str(path))

  return begin


@pytest.mark.parametrize(
  "now",
  [
    ["config.grid.EPOCHS = (1, 2, 4)"],
    ["config.grid.EPOCHS = (0.5, 1, 2)"],  # another first point
    ["config.grid.EPOCHS = (2,)"],
    [TWO, "config.grid.SEED = (0, 1)"],
    [TWO, "sweep.Sweep.poll_seconds = 9", "sweep.Sweep.price = 2"],
    [TWO, "sweep.Sweep.engine = @engines.Ray()"],
    [TWO, "engines.LocalProcesses.at_once = 2"],
    [TWO, "sweep.Sweep.tuning = @sweep.GridSearch()"],
    [TWO, "sweep.Sweep.tuning = @sweep.GridSearch()", "PEAK_LR = 0.3"],
  ],
)
def test_sweep_may_grow_and_change_its_engine(resume, now):
  resume(TWO)(*now)


@pytest.mark.parametrize(
  "now, words",
  [
    (["BATCH_SIZE = 30"], "BATCH_SIZE was 32, is 30"),
    (["SEED = 5"], "SEED was 0, is 5"),
    (["PEAK_LR = 0.3"], "PEAK_LR was .*, is 0.3"),
    (["config.grid.SEED = (0, 1)", "BATCH_SIZE = 30"], "BATCH_SIZE was 32"),
  ],
)
def test_shared_bindings_may_not_change(resume, now, words):
  with pytest.raises(UserError, match=words):
    resume(TWO)(TWO, *now)


def test_a_point_keeps_its_own_configuration(tmp_path):
  path = tmp_path / "config.gin"
  sweep = Configuration(FILES, [TWO])
  path.write_text(sweep.at({"EPOCHS": 2}).text)
  grown = Configuration(FILES, ["config.grid.EPOCHS = (0.5, 2, 4)"])
  grown.at({"EPOCHS": 2}).check_workdir(str(path))
  with pytest.raises(UserError, match="EPOCHS was 2, is 4"):
    grown.at({"EPOCHS": 4}).check_workdir(str(path))
