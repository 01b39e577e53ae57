"""The real entry point: what a user sees, exit codes, files left behind.

Three tests start Python as a user does; the others fork a process that has
everything imported.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.launcher import TINY, checkpoint_steps, wait_until

ROOT = pathlib.Path(__file__).parents[1]
# As a user's shell has it: the tests' own process is quieter.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k[:6] != "TF_CPP"}
NFNET = [
  "--gin_file=gin/quickstart.gin",
  "--gin_file=gin/overlays/smoke.gin",
  "--gin_param=EPOCHS = 0.178",  # 8 steps
  "--gin_param=run_config.Schedule.evaluate_every = 40",
]


def cold_start(*arguments, cwd=ROOT, **environment):
  return subprocess.run(
    [sys.executable, str(ROOT / "launch" / "train.py"), *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env={**ENVIRONMENT, **environment},
  )


@pytest.fixture
def launch(launcher, tmp_path_factory):
  """Runs launch/train.py; its output is kept outside of tmp_path."""
  folder = tmp_path_factory.mktemp("output")

  def run(*arguments, **environment):
    return launcher.launch(*arguments, folder=folder, **environment)

  return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Binding of a folder that the first run writes the digits to."""
  path = tmp_path_factory.mktemp("cache") / "a [1]*ü $x 'q' \"d\" #1 %s {y} \\n"
  return f"--gin_param=DATA_DIR = {str(path)!r}"


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  """A run of an NFNet from a shell: (its folder, its process)."""
  workdir = tmp_path_factory.mktemp("run") / "-a b's $5_$10 {x} #1 %s ü,;*"
  done = cold_start(*NFNET, data, f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  return workdir, done


def last_record(workdir):
  return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def test_run_shows_progress_and_summary_and_logs_library_output(finished):
  workdir, done = finished
  assert "held-out top-1" in done.stdout and "SavedModel" in done.stdout
  for line in done.stderr.splitlines():
    assert line[2] == ":" == line[5], line  # our own lines carry the time
  assert "step 8/8, loss" in done.stderr
  assert (workdir / "libraries.log").read_text()
  assert len(last_record(workdir)["weights_sha256"]) == 64


def test_serving_command_of_the_summary_works(finished):
  _, done = finished
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("serve it")]
  served = subprocess.run(
    line.removeprefix("serve it"),
    shell=True,
    capture_output=True,
    text=True,
    env={
      **ENVIRONMENT,
      "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    },
  )
  assert "Result for output key probabilities" in served.stdout, served.stderr


def list_files(folder):
  return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def test_exports_a_checkpoint_by_its_path_as_the_next_version(finished, launch):
  """Its averages, as the run itself exported them."""
  workdir, _ = finished
  before = list_files(workdir)
  checkpoint = workdir / "checkpoints" / "ckpt-8"
  done = launch(
    "--gin_file=gin/export.gin", f"--gin_param=CHECKPOINT = {str(checkpoint)!r}"
  )
  assert done.returncode == 0, done.stderr
  assert f"SavedModel  {workdir}/saved_model/2" in done.stdout
  assert "SavedModel: " in done.stderr and "top-1" in done.stderr
  weights = "variables/variables.data-00000-of-00001"
  exported, expected = (
    (workdir / "saved_model" / version / weights).read_bytes()
    for version in "21"
  )
  assert exported == expected
  card = (workdir / "saved_model" / "2" / "MODEL_CARD.md").read_text()
  assert "| weights | averaged |" in card
  after = list_files(workdir)
  assert {name: after[name] for name in before} == before
  new = workdir / "saved_model" / "2"
  assert all(new in name.parents for name in after.keys() - before.keys())


def test_finished_run_is_not_trained_again(finished, launch, data):
  workdir, first = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  again = launch(*NFNET, data, f"--workdir={workdir}")
  assert again.returncode == 0
  assert "finished already" in again.stderr and again.stdout == first.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_refuses_another_configuration_in_the_same_workdir(
  finished, launch, data
):
  workdir, _ = finished
  done = launch(*NFNET, data, "--gin_param=EPOCHS = 3", f"--workdir={workdir}")
  assert done.returncode == 2
  assert "EPOCHS was 0.178, is 3" in done.stderr
  assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Flags of a folder of JPEGs of several sizes, which are cropped."""
  folder = tmp_path_factory.mktemp("photos")
  noise = np.random.default_rng(0).integers(0, 256, [24, 60, 50, 3], np.uint8)
  for i, pixels in enumerate(noise):
    path = folder / "pictures" / ("cats", "dogs")[i % 2] / f"{i}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[i:, : 50 - i]).save(path)
  return [
    "--gin_file=gin/data/folder.gin",
    f"--gin_param=DATA_DIR = '{folder}/pictures'",
    f"--gin_param=CACHE = '{folder}/cache'",
    "--gin_param=HELDOUT_FRACTION = 0.25",
    "--gin_param=BATCH_SIZE = 4",
    "--gin_param=IMAGE_SIZE = 32",
  ]


@pytest.mark.parametrize(
  "sent, code, words, environment",
  [
    (signal.SIGINT, 130, "Interrupted", {"TF_DETERMINISTIC_OPS": "1"}),
    (signal.SIGTERM, 143, "saved", {}),
  ],
)
def test_signals_end_with_their_exit_codes(
  launcher, photos, tmp_path, sent, code, words, environment
):
  """That it resumes bit-identically is shown by loop_test.py.

  TensorFlow gives the time to no run whose operations must be deterministic.
  """
  screen, workdir = tmp_path / "screen", tmp_path / "run"
  pid = launcher.start(
    *TINY,
    *photos,
    "--gin_param=EPOCHS = 200",
    "--gin_param=run_config.Schedule.evaluate_every = 400",
    f"--workdir={workdir}",
    stdout=screen,
    **environment,
  )
  wait_until(lambda: checkpoint_steps(workdir)[1:], pid)
  os.kill(pid, sent)
  assert launcher.wait() == code
  last = screen.read_text().splitlines()[-1]
  assert words in last and "the same command" in last
  assert "Traceback" not in screen.read_text()
  assert not (workdir / "result.json").exists()
  with open(workdir / "metrics.jsonl") as file:
    record = json.loads(next(file))
  assert record["invalid_examples"] == 0
  assert ("input_wait_fraction" in record) == (not environment)


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--gin_file=gin/quickstrt.gin"], "did you mean 'gin/quickstart.gin'"),
    ([*NFNET, "--gin_param=EPOCH = 3"], "did you mean 'EPOCHS'"),
    (["gin/quickstart.gin"], "--gin_file=gin/quickstart.gin"),
    (["--ginfile=gin/quickstart.gin"], "ginfile"),
  ],
)
def test_invalid_input_ends_with_one_sentence_and_exit_code_2(
  launch, arguments, words, tmp_path
):
  done = launch(
    *arguments, f"--workdir={tmp_path / 'run'}", TMPDIR=str(tmp_path)
  )
  assert_one_sentence(done, words, tmp_path)


@pytest.mark.parametrize("file", ["quickstart", "sweeps/jft"])
def test_workdir_that_tensorflow_takes_for_a_pattern_is_refused_first(
  launch, file, tmp_path
):
  done = launch(
    f"--gin_file=gin/{file}.gin",
    f"--workdir={tmp_path}/exp [1]",
    TMPDIR=str(tmp_path),
  )
  assert_one_sentence(done, "use or rename it to a path without '['", tmp_path)


def test_missing_device_ends_with_one_sentence(tmp_path):
  done = cold_start(
    "--gin_file=gin/f7plus_jft.gin",
    f"--workdir={tmp_path / 'run'}",
    TMPDIR=str(tmp_path),
  )
  assert_one_sentence(done, "no TPU on this machine", tmp_path)


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--gin_param=VARIANT", "=", "nano"], "--gin_param=\"VARIANT = 'nano'\""),
    (["EPOCHS=3", "--dry_run"], '--gin_param="EPOCHS = 3"'),
    (["--EPOCHS=3"], 'did you mean --gin_param="EPOCHS = 3"?'),
    (["--gin.VARIANT=nano"], "did you mean --gin_param=\"VARIANT = 'nano'\"?"),
    (["--gin_bindings=A=@b.C()"], 'did you mean --gin_param="A = @b.C()"?'),
    (["--sgd.SGD.momentum=.5"], '--gin_param="sgd.SGD.momentum = .5"'),
    (["gin/quickstart.gin"], "did you mean --gin_file=gin/quickstart.gin?"),
    (["--gin_fil=x"], "see --helpfull"),
  ],
  ids=str,
)
def test_bindings_that_are_no_flags_are_told(launch, arguments, words):
  done = launch(*arguments)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2 and line.startswith("error: "), line
  assert words in line


def messages(done):
  """Returns the lines about anything but the progress on a busy machine."""
  lines = done.stderr.splitlines()
  return [line for line in lines if not line.endswith(" so far.")]


def assert_one_sentence(done, words, folder):
  assert done.returncode == 2
  (line,) = messages(done)
  assert line.startswith("error: ") and words in line
  assert done.stdout == ""
  assert list(folder.iterdir()) == []  # neither a work directory nor a log


def test_prints_the_traceback_on_request(launch):
  done = launch(
    "--gin_file=gin/quickstart.gin", "--gin_param=EPOCH = 3", "--traceback"
  )
  assert done.returncode == 2 and "Traceback" in done.stderr


@pytest.mark.parametrize(
  "file, variant, parameters, macs, hours",
  [
    ("f0", "F0", "68,416,284 body + 92,190,000 head", "9,576,574,976", "6,505"),
    pytest.param(
      *("f7plus", "F7+", "825,454,960 body + 122,910,000 head"),
      *("100,857,131,008", "53,540"),
      marks=pytest.mark.soak,
    ),
  ],
  ids=["F0", "F7+"],
)
def test_dry_run_from_another_folder(
  tmp_path, file, variant, parameters, macs, hours
):
  done = cold_start(
    f"--gin_file=gin/{file}_jft.gin",
    "--dry_run",
    "--gin_param=EPOCHS = 4",
    cwd=tmp_path,
  )
  assert done.returncode == 0 and messages(done) == []
  for part in (
    f"NFNet {variant}, 30,000 classes",
    parameters,
    macs,
    "16,000,000,000 = 4 epochs of 4,000,000,000",
    "3,906,250 at batch 4,096",
    f"{hours} TPU-v4 core-hours in the paper's figure 2",
    "EPOCHS = 4",
    "tpu, mixed_bfloat16",
  ):
    assert part in done.stdout, part
  assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_builds_checks_and_trains_on_shards(launch, tmp_path):
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
  trained = run("quickstart.gin", *TINY[1:])
  assert trained.returncode == 0, trained.stderr
  assert f"from 2 shards in {shards}" in trained.stderr
  checked = run("check_shards.gin")
  assert checked.returncode == 0 and "1,797 of 1,797" in checked.stdout
  with open(shards / "train-00001-of-00002.tfrecord", "r+b") as file:
    file.truncate(100_000)
  checked = run("check_shards.gin")
  assert checked.returncode == 2


def test_other_hosts_of_a_tpu_slice_exit_at_once(launch, tmp_path):
  done = launch(
    *TINY,
    "--gin_param=STRATEGY = @distribution.tpu",
    "--gin_param=distribution.tpu.address = 'slice'",
    f"--workdir={tmp_path / 'run'}",
    TPU_WORKER_ID="1",
  )
  assert done.returncode == 0 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert "the first host of 'slice' trains" in line
  assert list(tmp_path.iterdir()) == []
