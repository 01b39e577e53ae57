"""`--points`, on a job that takes no time."""

import concurrent.futures
import csv
import itertools
import json
import logging
import multiprocessing

import pytest

from nfnets_tf import progress
from nfnets_tf.config import Configuration
from nfnets_tf.errors import (
  Diverged,
  NothingToDo,
  Preempted,
  RunError,
  UserError,
)
from nfnets_tf.jobs.sweep import SweepJob
from nfnets_tf.models import cost
from nfnets_tf.scaling.sweep_store import SweepStore
from tests.support import small_job

# Forked from a server that has imported TensorFlow already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.support.small_job"])
TUNED = "sweep.Sweep.tuning = @sweep.GridSearch()"
TWO_AXES = "config.grid.PEAK_LR = (0.1, 0.2)"


def build_sweep_job(file, workdir, *params):
  command = [f"--gin_file={file}", *(f"--gin_param={p}" for p in params)]
  command.append(f"--workdir={workdir}")
  return SweepJob(Configuration([file], params), workdir, command)


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "work"


@pytest.fixture
def make_job(tmp_path, folder):
  """Makes a `SweepJob` with some bindings, always in the same directory."""
  file = tmp_path / "sweep.gin"
  file.write_text(small_job.SWEEP)

  def make(*params):
    return build_sweep_job(str(file), str(folder), *params)

  return make


@pytest.fixture
def run(make_job):
  def run(points, *params, **options):
    return make_job(*params).run(points, terminal=None, **options)

  return run


def states(folder):
  trials = SweepStore(str(folder)).trials()
  return {name: trial.state for name, trial in trials.items()}


def test_runs_all_points_and_writes_results(run, folder):
  summary = run("left", TWO_AXES)
  assert "6 done" in summary and "results.csv" in summary
  with open(folder / "results.csv") as file:
    rows = {row["point"]: row for row in csv.DictReader(file)}
  assert len(rows) == 6
  row = rows["PEAK_LR=0.2,SIZE=4"]
  assert float(row["heldout_loss"]) == pytest.approx(0.45)
  assert (row["flops"], row["SIZE"], row["state"]) == ("400.0", "4", "done")


def test_plan_writes_only_on_request(make_job, folder):
  job = make_job("sweep.Sweep.price = 3")
  text = job.plan()
  assert not folder.exists()
  assert "3 points: 700 FLOPs, 14 TPU-v4 core-hours, cost 42.00" in text
  assert "plan.csv" in job.run("plan", terminal=None)
  assert len((folder / "plan.csv").read_text().splitlines()) == 4


def test_plan_counts_each_network_once_and_shows_that_it_lives(
  monkeypatch, caplog, tmp_path
):
  built, abstractly = [], cost.abstractly
  monkeypatch.setattr(
    cost, "abstractly", lambda build: built.append(build) or abstractly(build)
  )
  monkeypatch.setattr(progress, "DISPLAY", progress.Display(seconds=0.02))
  monkeypatch.setattr(progress.LOGGER, "propagate", True)
  axes = "config.grid.VARIANT = ('femto',)", "PEAK_LR = 0.1"
  job = build_sweep_job("gin/sweeps/jft.gin", str(tmp_path), *axes)
  with caplog.at_level(logging.INFO, "nfnets_tf"):
    assert "6 points" in job.plan()
  assert len(built) == 1
  shown = [line for line in caplog.messages if line.endswith(" so far.")]
  assert shown[0].startswith("Estimating the cost of points, 0 of 6, 00:0")


EDITED = {
  "empty": lambda text: "",
  "semicolons": lambda text: text.replace(",", ";"),
  "without points": lambda text: text.replace("point", "name", 1),
  "a number is text": lambda text: text.replace("flops", "x", 1),
  "copied rows": lambda text: text + text.splitlines()[1] + "\n",
}


def test_edited_plan_is_told_and_made_anew(
  run, make_job, folder, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  run("plan")
  text = (folder / "plan.csv").read_text()
  for edit in EDITED.values():
    (folder / "plan.csv").write_text(edit(text))
    caplog.clear()
    assert "pending" in run("list")
    assert "plan.csv' is ignored" in caplog.text
  run("left")
  assert (folder / "plan.csv").read_text() == text


def test_plan_of_a_search_counts_its_trials(make_job):
  text = make_job(TUNED).plan()
  assert "at least 3 trials each: 2.1e+03 FLOPs, 42" in text
  one_sided = make_job(TUNED, "sweep.GridSearch.both_sides = False")
  assert "at least 2 trials each" in one_sided.plan()


def test_tuning_finds_optimum_and_starts_at_neighbor(run, folder):
  run("left", TUNED)
  tried = {}
  for trial in SweepStore(str(folder)).trials().values():
    size, rate = trial.bindings["SIZE"], trial.bindings["PEAK_LR"]
    tried.setdefault(size, set()).add(rate)
  # From 0.1 up to 0.4 and one beyond; the others start at 0.4.
  assert tried[1] == {0.05, 0.1, 0.2, 0.4, 0.8}
  assert tried[2] == tried[4] == {0.2, 0.4, 0.8}


def test_tuning_avoids_rates_that_diverge(run, folder):
  run("left", TUNED, "sweep.GridSearch.start = 3.2")
  trials = SweepStore(str(folder)).trials()
  assert trials["SIZE=1,PEAK_LR=3.2"].diverged
  assert trials["SIZE=1,PEAK_LR=0.4"].state == "done"


def test_list_shows_states(run):
  assert "3 pending" in run("list")
  run("2")
  text = run("list")
  assert "1 done" in text and "2 pending" in text and "0.8000" in text


def test_number_selects_a_point_and_share_every_nth(run, folder):
  run("3", TWO_AXES)
  assert set(states(folder)) == {"PEAK_LR=0.1,SIZE=4"}
  run("2/4", TWO_AXES)
  names = {"PEAK_LR=0.1,SIZE=2", "PEAK_LR=0.2,SIZE=4"}
  assert set(states(folder)) - {"PEAK_LR=0.1,SIZE=4"} == names


@pytest.mark.parametrize("points", ["4", "0", "3/2", "SIZE=3", "al"])
def test_unknown_points_are_refused(run, points):
  with pytest.raises(UserError, match=f"--points={points} .*from 1 to"):
    run(points)


def test_configuration_without_sweep_is_refused(tmp_path):
  configuration = Configuration(["gin/quickstart.gin"])
  with pytest.raises(UserError, match="--points is given, but"):
    SweepJob(configuration, str(tmp_path))


def test_point_directory_is_that_of_a_single_run(run, folder):
  started = []
  assert run("SIZE=2", on_start=started.append) == "loss 0.800"
  point = folder / "points" / "SIZE=2"
  assert started == [str(point)]
  text = (point / "config.gin").read_text()
  assert "SIZE = 2" in text and "small_job.Job" in text
  assert not [word for word in ("Sweep.", "grid", "Search.") if word in text]
  single = Configuration([str(point / "config.gin")])
  assert single.build_job().size == 2 and not single.is_sweep
  record = json.loads((folder / "records" / "SIZE=2.json").read_text())
  assert record["state"] == "done" and record["bindings"] == {"SIZE": 2}
  assert record["result"] == {"heldout_loss": 0.8} and record["seconds"] >= 0


def test_done_point_is_not_run_again(run):
  run("SIZE=2")
  with pytest.raises(NothingToDo, match="SIZE=2 is already done"):
    run("SIZE=2", "FAULT = 'bug'")
  assert "3 done" in run("left")


def test_locked_point_is_left_to_its_process(run, folder):
  with SweepStore(str(folder)).lock("SIZE=2").hold():
    with pytest.raises(NothingToDo, match="SIZE=2' is in use by process"):
      in_new_context(run, "SIZE=2")
  assert states(folder) == {}


def in_new_context(function, *args):
  """Calls a function as another thread would."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return pool.submit(function, *args).result()


def drive(file, workdir):
  build_sweep_job(file, workdir, TWO_AXES).run("left", terminal=None)


def test_processes_share_a_sweep(tmp_path, folder):
  file = tmp_path / "sweep.gin"
  file.write_text(small_job.SWEEP)
  processes = [
    PROCESSES.Process(target=drive, args=(str(file), str(folder)))
    for _ in range(3)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join(120)
  assert [process.exitcode for process in processes] == [0] * 3
  assert list(states(folder).values()) == ["done"] * 6
  runs = [path.read_text() for path in folder.glob("points/*/runs")]
  assert runs == ["."] * 6  # each point once


def test_failures_are_reported_and_other_points_run(run, folder):
  message = "2 of 3 points failed, the first one SIZE=2 .this is too large"
  with pytest.raises(RunError, match=message):
    run("left", "FAULT = 'large'")
  expected = {"SIZE=1": "done", "SIZE=2": "failed", "SIZE=4": "failed"}
  assert states(folder) == expected
  with pytest.raises(RunError):  # without a retry
    run("left", "FAULT = 'large'")
  allowed = "config.Launch.allow_changes = ['FAULT']"
  assert "3 done" in run("failed", allowed)


@pytest.mark.parametrize(
  "fault, error, reason, diverged",
  [
    ("diverged", Diverged, "the loss is not finite; lower it.", True),
    ("nan", Diverged, "the heldout_loss of SIZE=2 is nan; lower", True),
    ("large", UserError, "this is too large; make it smaller.", False),
    ("bug", KeyError, "KeyError: 'what'", False),
    ("no loss", UserError, "'heldout_loss' is not a number", False),
  ],
)
def test_failure_is_recorded_with_its_reason(
  run, folder, fault, error, reason, diverged
):
  for _ in range(2):  # a failed point may be run again by its name
    with pytest.raises(error):
      run("SIZE=2", f"FAULT = {fault!r}")
  store = SweepStore(str(folder))
  trial = store.trial("SIZE=2")
  assert trial.state == "failed" and reason in trial.reason
  assert trial.diverged is diverged
  assert store.lock("SIZE=2").holder() is None


def test_terminated_point_ends_the_sweep_and_stays_pending(run, folder):
  with pytest.raises(Preempted):
    run("left", "FAULT = 'terminated'")
  assert states(folder) == {"SIZE=1": "pending"}
  assert "3 done" in run("left", "config.Launch.allow_changes = ['FAULT']")


def test_axis_may_grow_and_base_may_not_change(run):
  run("left")
  assert "4 done" in run("left", "config.grid.SIZE = (1, 2, 4, 8)")
  with pytest.raises(UserError, match="another configuration .*PEAK_LR"):
    run("left", "PEAK_LR = 0.2")


def test_workers_of_a_cluster_run_single_points(run, folder, monkeypatch):
  for index, recorded in ((1, {}), (0, {"SIZE=2": "done"})):
    cluster = {"worker": ["a:1", "b:2"]}
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": cluster, "task": task})
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match="TF_CONFIG is set.*--points=NAME"):
      run("left")
    assert run("SIZE=2") == "loss 0.800"
    assert states(folder) == recorded  # the chief records


def test_only_first_host_of_a_slice_runs_the_sweep(run, folder, monkeypatch):
  monkeypatch.setenv("TPU_WORKER_ID", "1")
  with pytest.raises(NothingToDo, match="TPU_WORKER_ID = 1"):
    run("left")
  assert not folder.exists()


def test_report_gets_a_snapshot(run, folder):
  small_job.Report.statuses.clear()
  report = "sweep.Sweep.report = @small_job.Report()"
  run("left", TUNED, "sweep.GridSearch.start = 1.6", report)
  first, path = small_job.Report.statuses[0]
  assert path == str(folder / "report.html") and first.name == "work"
  assert first.results["state"].tolist() == ["pending"] * 3
  last, _ = small_job.Report.statuses[-1]
  assert last.loss == "heldout_loss" and last.tuned == "PEAK_LR"
  assert last.grid == {f"SIZE={n}": {"SIZE": n} for n in (1, 2, 4)}
  diverged = last.results.loc[last.results["diverged"], "point"]
  assert diverged.tolist() == ["SIZE=1,PEAK_LR=1.6"]
  assert last.plan["point"].tolist() == list(last.grid)
  assert set(last.metrics_files) == set(last.results["point"])
  assert "small_job.Job" in last.config_text
  # At the start, and once for each trial.
  assert len(small_job.Report.statuses) == 1 + len(last.results)


@pytest.mark.parametrize(
  "files, axis, count",
  [
    (["gin/quickstart.gin", "gin/sweeps/base.gin"], "EPOCHS = (1, 2)", 2),
    (["gin/sweeps/jft.gin"], None, 36),
    (["gin/sweeps/cifar10.gin"], None, 16),
    (["gin/sweeps/cifar10_sparse.gin"], None, 36),
    (
      ["gin/sweeps/cifar10_finetune.gin"],
      "MODEL = ({'VARIANT': 'W8', 'WEIGHTS': 'x'},)",
      3,
    ),
  ],
)
def test_sweeps_of_the_tree_build(files, axis, count, tmp_path):
  params = [f"config.grid.{axis}"] if axis else []
  if "cifar10" in files[0]:
    params.append(f"DATA_DIR = {str(tmp_path)!r}")
  for name in itertools.product(("train", "test"), ("a", "b")):
    tmp_path.joinpath(*name).mkdir(parents=True)
    for number in range(200):
      tmp_path.joinpath(*name, f"{number}.jpg").touch()
  sweep = Configuration(files, params).build_sweep()
  assert len(sweep.points) == count
