"""What `--points` does, on a job that takes no time."""

import csv
import json
import pathlib

import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.config.sweeping import SweepRun
from nfnets_tf.errors import NothingToDo, Preempted, RunError, UserError

ROOT = pathlib.Path(__file__).parents[2]
FILE = """\
from __gin__ import dynamic_registration

from nfnets_tf import config
from nfnets_tf.scaling import sweep
from nfnets_tf.scaling import tuning
from tests.support import small_job

SIZE = 1
PEAK_LR = 0.1
WRONG = None
config.Launch.job = @small_job.Job()
config.Launch.sweep = @sweep.Sweep()
small_job.Job:
  rate = %PEAK_LR
  size = %SIZE
  wrong = %WRONG
sweep.Sweep:
  grid = @config.grid()
  tuning = None
  engine = @small_job.InProcess()
  loss = 'heldout_loss'
  lease_seconds = 60
  poll_seconds = 0.01
  price = None
  report = None
tuning.GridSearch:
  macro = 'PEAK_LR'
  start = %PEAK_LR
  factor = 2.0
  both_sides = True
  most_trials = 8

config.grid.SIZE = (1, 2, 4)
"""
TUNED = "sweep.Sweep.tuning = @tuning.GridSearch()"
TWO_AXES = "config.grid.PEAK_LR = (0.1, 0.2)"


@pytest.fixture
def sweep(tmp_path):
  """Makes a `SweepRun` with some bindings, always in the same folder."""
  file = tmp_path / "sweep.gin"
  file.write_text(FILE)

  def make(*params):
    given = [str(file), *params]
    workdir = str(tmp_path / "work")
    configuration = Configuration(given[:1], given[1:])
    return SweepRun(configuration, workdir, [*given, workdir])

  make.folder = tmp_path / "work"
  return make


def records(sweep):
  return {
    path.stem: json.loads(path.read_text())
    for path in sweep.folder.glob("records/*.json")
  }


def results(sweep):
  with open(sweep.folder / "results.csv") as file:
    return list(csv.DictReader(file))


def test_all_points_are_run_and_written_down(sweep):
  said = sweep(TWO_AXES).run("left", terminal=None)
  assert "6 done" in said and "results.csv" in said
  rows = {row["point"]: row for row in results(sweep)}
  assert len(rows) == 6
  row = rows["PEAK_LR=0.2,SIZE=4"]
  assert float(row["heldout_loss"]) == pytest.approx(0.45)
  assert (row["flops"], row["SIZE"], row["state"]) == ("400.0", "4", "done")


def test_the_plan_writes_nothing_unless_it_is_asked_for(sweep):
  run = sweep("sweep.Sweep.price = 3")
  said = run.plan()
  assert not sweep.folder.exists()
  assert "3 points: 700 FLOPs, 14 TPU-v4 core-hours, 42.00 by the" in said
  assert "plan.csv" in run.run("plan", terminal=None)
  assert len((sweep.folder / "plan.csv").read_text().splitlines()) == 4


def test_the_plan_of_a_search_counts_its_trials(sweep):
  assert "of 3 trials each at least: 2.1e+03 FLOPs, 42" in sweep(TUNED).plan()
  one = "tuning.GridSearch.both_sides = False"
  assert "of 2 trials each at least" in sweep(TUNED, one).plan()


def test_a_search_finds_the_best_of_each_point(sweep):
  sweep(TUNED).run("left", terminal=None)
  tried = {}
  for record in records(sweep).values():
    size, rate = record["bindings"]["SIZE"], record["bindings"]["PEAK_LR"]
    tried.setdefault(size, set()).add(rate)
  # From 0.1 up to 0.4 and one beyond; the others begin at 0.4.
  assert tried[1] == {0.05, 0.1, 0.2, 0.4, 0.8}
  assert tried[2] == tried[4] == {0.2, 0.4, 0.8}


def test_a_list_of_states(sweep):
  run = sweep()
  assert "3 pending" in run.run("list", terminal=None)
  run.run("2", terminal=None)
  said = run.run("list", terminal=None)
  assert "1 done" in said and "2 pending" in said and "0.8000" in said


def test_a_number_is_that_point_and_a_share_is_every_nth(sweep):
  sweep(TWO_AXES).run("3", terminal=None)
  assert set(records(sweep)) == {"PEAK_LR=0.1,SIZE=4"}
  sweep(TWO_AXES).run("2/4", terminal=None)
  names = {"PEAK_LR=0.1,SIZE=2", "PEAK_LR=0.2,SIZE=4"}
  assert set(records(sweep)) - {"PEAK_LR=0.1,SIZE=4"} == names


@pytest.mark.parametrize("given", ["4", "0", "3/2", "SIZE=3", "al"])
def test_points_that_do_not_exist(sweep, given):
  with pytest.raises(UserError, match=f"--points={given} .*from 1 to"):
    sweep().run(given, terminal=None)


def test_a_point_alone_has_a_configuration_without_the_sweep(sweep, tmp_path):
  sweep().run("SIZE=2", terminal=None)
  (path,) = sweep.folder.glob("points/*/config.gin")
  text = path.read_text()
  assert "SIZE = 2" in text and "small_job.Job" in text
  assert not [word for word in ("Sweep.", "grid", "Search.") if word in text]
  again = Configuration([str(path)])
  assert again.build_job().size == 2 and not again.is_sweep


def test_points_of_no_sweep(tmp_path):
  with pytest.raises(UserError, match="--points was given, but .* no sweep"):
    SweepRun(Configuration(["gin/quickstart.gin"]), str(tmp_path))


def test_what_fails_is_told_and_the_others_go_on(sweep):
  message = "2 of 3 points failed, first SIZE=2 .this is too large; make it"
  with pytest.raises(RunError, match=message):
    sweep("WRONG = 'large'").run("left", terminal=None)
  states = {name: r["state"] for name, r in records(sweep).items()}
  assert states == {"SIZE=1": "done", "SIZE=2": "failed", "SIZE=4": "failed"}
  with pytest.raises(RunError):  # failures are not done again unasked
    sweep("WRONG = 'large'").run("left", terminal=None)


def test_failures_are_done_again_where_that_is_asked_for(sweep):
  with pytest.raises(RunError):
    sweep("WRONG = 'large'").run("left", terminal=None)
  allowed = "config.Launch.allow_changes = ['WRONG']"
  assert "3 done" in sweep(allowed).run("failed", terminal=None)


def test_a_search_goes_around_what_diverges(sweep):
  sweep(TUNED, "tuning.GridSearch.start = 3.2").run("left", terminal=None)
  found = records(sweep)
  assert found["SIZE=1,PEAK_LR=3.2"]["diverged"]
  assert found["SIZE=1,PEAK_LR=0.4"]["state"] == "done"


def test_a_point_that_is_asked_to_end_ends_the_sweep(sweep):
  with pytest.raises(Preempted):
    sweep("WRONG = 'asked to end'").run("left", terminal=None)
  assert not records(sweep)


def test_a_grown_axis_is_gone_on_with_and_another_base_is_refused(sweep):
  sweep().run("left", terminal=None)
  grown = "config.grid.SIZE = (1, 2, 4, 8)"
  assert "4 done" in sweep(grown).run("left", terminal=None)
  with pytest.raises(UserError, match="another configuration .*PEAK_LR was"):
    sweep("PEAK_LR = 0.2").run("left", terminal=None)


def test_one_of_several_workers_runs_no_sweep_but_a_point(sweep, monkeypatch):
  task = {"type": "worker", "index": 1}
  cluster = {"worker": ["a:1", "b:2"]}
  config = json.dumps({"cluster": cluster, "task": task})
  monkeypatch.setenv("TF_CONFIG", config)
  with pytest.raises(UserError, match="TF_CONFIG is set.*--points=NAME"):
    sweep().run("left", terminal=None)
  assert sweep().run("SIZE=2", terminal=None) == "loss 0.800"
  assert not records(sweep)  # that is the chief's


def test_of_the_hosts_of_a_slice_the_first_sweeps(sweep, monkeypatch):
  monkeypatch.setenv("TPU_WORKER_ID", "1")
  with pytest.raises(NothingToDo, match="TPU_WORKER_ID = 1"):
    sweep().run("left", terminal=None)
  assert not sweep.folder.exists()


@pytest.mark.parametrize(
  "path", sorted(p.name for p in (ROOT / "gin" / "sweeps").glob("*.gin"))
)
def test_sweeps_of_the_tree_build(path, tmp_path):
  given = [f"DATA_DIR = {str(tmp_path)!r}"] if "cifar10" in path else []
  if "finetune" in path:
    given.append("config.grid.MODEL = ({'VARIANT': 'W8', 'WEIGHTS': 'x'},)")
  for kind in ("train", "test"):
    for name in ("a", "b"):
      (tmp_path / kind / name).mkdir(parents=True)
      for number in range(200):
        (tmp_path / kind / name / f"{number}.jpg").touch()
  files = [f"gin/sweeps/{path}"]
  if path == "base.gin":
    files = ["gin/quickstart.gin", *files]
    given = ["config.grid.EPOCHS = (1, 2)"]
  sweep = Configuration(files, given).build_sweep()
  expected = {"base.gin": 2, "jft.gin": 36, "cifar10.gin": 16}
  assert len(sweep.cells) == expected.get(path, 3)
