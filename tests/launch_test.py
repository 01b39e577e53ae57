"""The real entry point, in processes of its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# As a user's shell has it: the tests' own process is quieter.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k[:6] != "TF_CPP"}
SMOKE = ["--gin_file=gin/quickstart.gin", "--gin_file=gin/overlays/smoke.gin"]


def command(*arguments):
  return [sys.executable, str(ROOT / "launch" / "train.py"), *arguments]


def launch(*arguments, cwd=ROOT, environment=ENVIRONMENT):
  return subprocess.run(
    command(*arguments),
    capture_output=True,
    text=True,
    cwd=cwd,
    env=environment,
  )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Binding of a folder that the first run writes the digits to."""
  path = tmp_path_factory.mktemp("cache") / "digits"
  return f"--gin_param=DATA_DIR = {str(path)!r}"


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  """A smoke run that nobody killed: (its folder, its process)."""
  workdir = tmp_path_factory.mktemp("run") / "whole"
  done = launch(*SMOKE, data, "--gin_param=EPOCHS = 2", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  return workdir, done


def last_record(workdir):
  return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_run_shows_lines_and_a_summary_and_keeps_the_chatter(finished):
  workdir, done = finished
  assert "held-out top-1" in done.stdout and "SavedModel" in done.stdout
  for line in done.stderr.splitlines():
    assert line[2] == ":" == line[5], line  # our own lines carry the time
  assert "step 90/90, loss" in done.stderr
  assert (workdir / "libraries.log").read_text()
  assert len(last_record(workdir)["weights_sha256"]) == 64


def test_the_command_that_the_summary_names_serves(finished):
  _, done = finished
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("serve it")]
  served = subprocess.run(
    [
      os.path.join(os.path.dirname(sys.executable), part)
      if part == "saved_model_cli"
      else part
      for part in line.split()[2:]
    ],
    capture_output=True,
    text=True,
  )
  assert "Result for output key probabilities" in served.stdout, served.stderr


def files_of(folder):
  return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


@pytest.mark.parametrize("averaged", [True, False])
def test_a_checkpoint_is_exported_by_naming_it(finished, tmp_path, averaged):
  """The averages are what the run exported by itself, and are the default."""
  workdir, _ = finished
  before = files_of(workdir)
  (checkpoint,) = (workdir / "checkpoints").glob("ckpt-90.index")
  done = launch(
    "--gin_file=gin/export.gin",
    f"--gin_param=CHECKPOINT = {str(checkpoint.with_suffix(''))!r}",
    f"--workdir={tmp_path}",
    *([] if averaged else ["--gin_param=AVERAGED = False"]),
  )
  assert done.returncode == 0, done.stderr
  assert f"SavedModel  {tmp_path}/saved_model/1" in done.stdout
  assert "SavedModel: differs by " in done.stderr
  weights = "variables/variables.data-00000-of-00001"
  made, own = (
    (folder / "saved_model" / "1" / weights).read_bytes()
    for folder in (tmp_path, workdir)
  )
  assert (made == own) == averaged
  card = (tmp_path / "saved_model" / "1" / "MODEL_CARD.md").read_text()
  kind = "averages, where there are any" if averaged else "raw"
  assert f"| weights | {kind} |" in card
  assert files_of(workdir) == before  # neither checkpoints nor anything else


def test_without_a_workdir_it_is_the_runs_next_version(finished):
  workdir, _ = finished
  done = launch(
    "--gin_file=gin/export.gin", f"--gin_param=CHECKPOINT = {str(workdir)!r}"
  )
  assert done.returncode == 0, done.stderr
  assert f"SavedModel  {workdir}/saved_model/2" in done.stdout


def test_again_on_the_finished_folder_nothing_is_trained(finished, data):
  workdir, first = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  again = launch(*SMOKE, data, "--gin_param=EPOCHS = 2", f"--workdir={workdir}")
  assert again.returncode == 0
  assert "done already" in again.stderr and again.stdout == first.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_configuration_in_the_folder_is_refused(finished, data):
  workdir, _ = finished
  done = launch(*SMOKE, data, "--gin_param=EPOCHS = 3", f"--workdir={workdir}")
  assert done.returncode == 2
  assert "EPOCHS was 2, is 3" in done.stderr
  assert "Traceback" not in done.stderr


def newest(workdir):
  """The list of checkpoints, which TensorFlow writes after their files."""
  path = workdir / "checkpoints" / "checkpoint"
  return path.read_text() if path.exists() else None


def stop_after_a_checkpoint(arguments, workdir, how):
  """Starts a run and sends a signal after its first checkpoint."""
  before = newest(workdir)
  with subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=ENVIRONMENT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    # A shell makes what it runs in the background ignore it.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  ) as process:
    deadline = time.monotonic() + 180
    while newest(workdir) == before:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    process.send_signal(how)
    _, screen = process.communicate()
  assert not (workdir / "result.json").exists()
  return process.returncode, screen


def test_stopped_twice_and_started_again_it_ends_in_the_same_bits(
  finished, data, tmp_path
):
  whole, _ = finished
  workdir = tmp_path / "stopped"
  arguments = command(
    *SMOKE, data, "--gin_param=EPOCHS = 2", f"--workdir={workdir}"
  )
  code, screen = stop_after_a_checkpoint(arguments, workdir, signal.SIGINT)
  assert code == 130 and "rerun the same command" in screen
  assert "Traceback" not in screen
  code, screen = stop_after_a_checkpoint(arguments, workdir, signal.SIGTERM)
  assert code == 143 and "all is saved, and the same command goes" in screen
  again = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
  assert again.returncode == 0, again.stderr
  assert "Going on from step" in again.stderr
  assert last_record(workdir) == last_record(whole)


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--gin_file=gin/f7plus_jft.gin"], "no TPU on this machine"),
    (["--gin_file=gin/quickstrt.gin"], "did you mean 'gin/quickstart.gin'"),
    ([*SMOKE, "--gin_param=EPOCH = 3"], "did you mean 'EPOCHS'"),
    (["gin/quickstart.gin"], "--gin_file=gin/quickstart.gin"),
    (["--ginfile=gin/quickstart.gin"], "ginfile"),
  ],
)
def test_mistakes_end_in_one_sentence_and_exit_code_2(
  arguments, words, tmp_path
):
  environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
  done = launch(
    *arguments, f"--workdir={tmp_path / 'run'}", environment=environment
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and words in line
  assert done.stdout == ""
  assert list(tmp_path.iterdir()) == []  # neither a work directory nor a log


def test_a_traceback_is_there_for_the_asking(tmp_path):
  done = launch(
    "--gin_file=gin/quickstart.gin",
    "--gin_param=EPOCH = 3",
    "--traceback",
  )
  assert done.returncode == 2 and "Traceback" in done.stderr


def test_the_dry_run_of_the_largest_run_from_another_folder(tmp_path):
  done = launch(
    "--gin_file=gin/f7plus_jft.gin",
    "--dry_run",
    "--gin_param=EPOCHS = 4",
    cwd=tmp_path,
  )
  assert done.returncode == 0 and done.stderr == ""
  for part in (
    "NFNet F7+, 30,000 classes",
    "825,454,960 body + 122,910,000 head",
    "100.9 G",
    "16,000,000,000 = 4 epochs of 4,000,000,000",
    "3,906,250 at batch 4,096",
    "53,540 TPU-v4 core-hours in the paper's figure 2",
    "EPOCHS = 4",
    "tpu, mixed_bfloat16",
  ):
    assert part in done.stdout, part
  assert list(tmp_path.iterdir()) == []


def test_shards_are_made_checked_and_trained_on(tmp_path):
  shards = tmp_path / "shards"

  def run(file, *arguments):
    return launch(
      f"--gin_file=gin/{file}",
      *arguments,
      f"--gin_param=DATA_DIR = {str(shards)!r}",
      f"--workdir={tmp_path / file}",
    )

  made = run("prepare_digits.gin")
  assert made.returncode == 0, made.stderr
  assert "train holds    1,437 images" in made.stdout
  trained = run("quickstart.gin", *SMOKE[1:])
  assert trained.returncode == 0, trained.stderr
  assert f"from 2 shards in {shards}" in trained.stderr
  checked = run("check_shards.gin")
  assert checked.returncode == 0 and "1,797 of 1,797" in checked.stdout
  with open(shards / "train-00001-of-00002.tfrecord", "r+b") as file:
    file.truncate(100_000)
  checked = run("check_shards.gin")
  assert checked.returncode == 2


def test_on_another_host_of_a_tpu_slice_there_is_nothing_to_do(tmp_path):
  done = launch(
    *SMOKE,
    "--gin_param=STRATEGY = @distribution.tpu",
    "--gin_param=distribution.tpu.address = 'slice'",
    f"--workdir={tmp_path / 'run'}",
    environment={**ENVIRONMENT, "TPU_WORKER_ID": "1"},
  )
  assert done.returncode == 0 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert "the first host of 'slice' trains" in line
  assert list(tmp_path.iterdir()) == []
