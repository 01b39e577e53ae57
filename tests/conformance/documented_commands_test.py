"""Every command and snippet of README.md and docs/ has a rule, and runs by it.

A rule says how a documented command runs in a workspace with small stand-in
data: with further arguments, with parts replaced, or only as far as --dry_run
or flags where data or hardware is missing. A new command without a rule fails
`test_every_documented_command_has_a_rule`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
  "python pip pre-commit saved_model_cli bash curl tensorflow_model_server"
).split()
# Of the repository, in the workspace; what commands write stays there.
LINKED = (
  ".ci nfnets_tf launch gin docs benchmarks examples tests tools setup.py"
  " pyproject.toml README.md CHANGELOG.md CONTRIBUTING.md"
).split()
TINY = (
  " --gin_param='EPOCHS = 1' --gin_param='BATCH_SIZE = 8'"
  " --gin_param=\"VARIANT = 'femto'\" --gin_param=\"POLICY = 'float32'\""
)
PRELUDE = """
import numpy as np, nfnets_tf, tensorflow as tf
import tensorflow_addons as tfa
from nfnets_tf import keras
images = np.zeros([8, 32, 32, 3], np.uint8)
dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(8))).batch(4)
train = heldout = dataset
"""


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule for running documented commands.

  Attributes:
    pattern: regular expression found in the commands that it applies to.
    append: further arguments.
    replace: pairs of a documented part and what stands for it.
    exit_code: that is expected.
    skip: why they are not run at all.
  """

  pattern: str
  append: str = ""
  replace: tuple[tuple[str, str], ...] = ()
  exit_code: int = 0
  skip: str = ""


DRY = " --dry_run"
CHECK_FLAGS = " --only_check_args"
# The first matching rule applies; rules whose commands write files come first.
RULES = [
  Rule(r"^(pip|pre-commit) ", skip="changes the installation; .ci/run does it"),
  Rule(r"^(curl|tensorflow_model_server) ", skip="examples/serve_rest_test.py"),
  Rule(r"tools\.tpu_check", skip="needs a compiler; tests/tools, .ci/run"),
  Rule(r"-m pytest", append=" --collect-only -q -n 0"),
  Rule(r"DRY_RUN|--dry_run"),
  Rule(r"EPOCH = 3", exit_code=2),
  Rule(
    r"allow_changes",
    replace=(("EPOCHS = 60", "EPOCHS = 2"),),
  ),
  Rule(r"for index in 0 1", replace=(("runs/two", "runs/two" + TINY),)),
  Rule(r"quickstart\.gin", append=" --gin_param='EPOCHS = 1'"),
  Rule(r"prepare_folder\.gin"),
  Rule(r"check_shards\.gin"),
  # Tests have no network: of F7, nothing is published to download.
  Rule(r"WEIGHTS = 'imagenet'", replace=(("'F0'", "'F7'"),), exit_code=2),
  Rule(r"finetune_(folder|shards)\.gin", append=TINY),
  Rule(r"gin/export\.gin.*imagenet|imagenet.*gin/export\.gin", append=DRY),
  Rule(r"gin/export\.gin"),
  Rule(r"paper_figures\.gin"),
  Rule(
    r"fit_laws\.gin",
    replace=(
      ("SWEEP/results.csv", "docs/data/cifar10_sweep.csv"),
      ("WORKDIR/results.csv", "docs/data/cifar10_sweep.csv"),
    ),
  ),
  Rule(
    r"fit_sparsity_law\.gin",
    replace=(
      ("vit_jft.csv", "docs/data/sparsity_example.csv"),
      ("t5_c4.csv", "docs/data/sparsity_example.csv"),
      ("'steps'", "'examples'"),
    ),
  ),
  Rule(r"data_server\.gin|data_service\.gin|sweeps/jft\.gin", append=DRY),
  Rule(
    r"augmentation_sheet\.py",
    replace=(("docs/images/augmentation.jpg", "sheet.jpg"),),
  ),
  Rule(r"^saved_model_cli "),
  Rule(r"cifar10\.sh", skip="trains on CIFAR-10 for hours"),
  Rule(
    r"benchmarks\.(training_step|sam|serving)( --policies=\S+)?( --rec\S+)? *$",
    append=" --variant=femto --image_size=32 --rounds=1",
  ),
  Rule(
    r"benchmarks\.pruning",
    append=" --variant=femto --image_size=32 --rounds=1",
  ),
  Rule(
    r"benchmarks\.workers",
    append=" --variant=femto --image_size=32 --batch_size=4 --rounds=1",
  ),
  Rule(
    r"benchmarks\.input_pipeline",
    replace=(("FOLDER", "photos/a"), (" --timm=PYTHON", "")),
    append=" --rounds=1 --count=64",
  ),
  Rule(
    r"benchmarks\.stacks",
    replace=(("PYTHON", sys.executable), ("FOLDER", "photos/a")),
    append=" --variant=femto --rounds=1",
  ),
  Rule(r"benchmarks\.(convolution|remote_calls)"),
  Rule(
    r"benchmarks\.compare_runs",
    replace=(
      ("docs/images/sam.png", "sam.png"),
      ("RUNS/full_plain_?", "runs/quickstart"),
      ("RUNS/full_sam_?", "runs/quickstart"),
    ),
  ),
  Rule(
    r"benchmarks\.(scaling_study|sparsity_study|published_sparsity)",
    append=CHECK_FLAGS,
  ),
  Rule(r"benchmarks\.NAME", skip="a placeholder"),
  Rule(
    r"benchmarks\.(training_step|serving) --timm=",
    skip="needs an interpreter with timm",
  ),
  Rule(r"benchmarks\.step_growth", skip="measures for ten minutes"),
  # Fragments and files.
  # Dataflow refuses the placeholders of a project and a bucket.
  Rule(r"^FRAGMENT .*DataflowRunner", exit_code=2),
  Rule(r"^FRAGMENT .*ShardBuilder"),
  Rule(r"^FRAGMENT .*sweep\.Sweep"),
  Rule(r"^GIN "),
  # Python.
  Rule(r"^PYTHON .*load_weights\(network, \"F0", replace=(("epochs=10", ""),)),
  Rule(
    r"^PYTHON .*save_timm",
    replace=(("dm_nfnet_f0-604f9c3a.pth", "femto.npz"),),
  ),
  Rule(r"^PYTHON .*nfnets_tf\.AGC\("),
  Rule(r"^PYTHON .*(saved_model\.load|NFNet\()"),
]
# Later commands export, check and resume what these make.
FIRST = r"^python [^=]*=gin/(quickstart|finetune_folder|prepare_folder)\.gin"
FRAGMENTS = {
  "ShardBuilder": "--gin_file=gin/prepare_folder.gin"
  " --gin_param=\"IMAGES = 'photos'\" --gin_param=\"DATA_DIR = 'other'\"",
  "sweep.Sweep": "--gin_file=gin/sweeps/jft.gin",
}


def find_rule(command: str) -> Rule | None:
  for rule in RULES:
    if re.search(rule.pattern, command, re.DOTALL):
      return rule
  return None


def read_commands(page: pathlib.Path) -> list[str]:
  """Returns what a page says to run, in its order."""
  text = page.read_text()
  commands = []
  for language, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text):
    block = block.replace("\\\n", " ")
    if language == "python":
      commands.append(f"PYTHON {block}")
    elif "for index in" in block:
      commands.append(block)
    elif block.startswith("include "):
      commands.append(f"GIN {block}")
    elif block.startswith("--gin_param"):
      commands.append(f"FRAGMENT {block.strip()}")
    else:
      for line in block.splitlines():
        line = re.sub(r"\s+#.*", "", line.removeprefix("$ "))
        if line.split(" ")[0] in PROGRAMS:
          commands += line.split(" && ")
  prose = re.sub(r"(?ms)^```.*?^```$", "", text)
  commands += re.findall(r"`(python -m [^`]+)`", prose.replace("\n", " "))
  return commands


COMMANDS = [
  pytest.param(command, id=f"{page.stem}-{number}")
  for page in PAGES
  for number, command in enumerate(read_commands(page))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_has_a_rule(command):
  assert find_rule(command) is not None, command


def test_command_without_a_rule_is_detected():
  assert find_rule("python launch/train.py --gin_file=gin/unknown.gin") is None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
  """The repository in links, photographs, weights and a finished run."""
  import tensorflow as tf

  from nfnets_tf.models.nfnet import NFNet
  from nfnets_tf.models.weights import save_deepmind

  folder = tmp_path_factory.mktemp("workspace")
  for name in LINKED:
    (folder / name).symlink_to(ROOT / name)
  r = np.random.default_rng(0)
  for name in ("photos/a", "photos/b", "imagenet/val/a", "imagenet/val/b"):
    (folder / name).mkdir(parents=True)
    for number in range(64):  # a batch of benchmarks.input_pipeline
      pixels = r.integers(0, 255, [40, 48, 3]).astype(np.uint8)
      path = folder / name / f"{number}.jpg"
      path.write_bytes(tf.io.encode_jpeg(pixels).numpy())
  save_deepmind(NFNet("femto", 1000), str(folder / "femto.npz"))
  for page in (ROOT / "README.md", ROOT / "docs" / "data.md"):
    for command in filter(re.compile(FIRST).search, read_commands(page)):
      run(folder, command)
  return folder


def run(folder, command: str) -> None:
  """Runs a command in the workspace as its rule says."""
  rule = find_rule(command)
  if rule.skip:
    pytest.skip(rule.skip)
  for documented, stand_in in rule.replace:
    command = command.replace(documented, stand_in)
  command = as_shell(folder, command) + rule.append
  bin_folder = os.path.dirname(sys.executable)
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", command],
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=600,
    env={
      **os.environ,
      "PATH": f"{bin_folder}:{os.environ['PATH']}",
      "PYTHONPATH": str(folder),
      "SLURM_ARRAY_TASK_ID": "1",
    },
  )
  assert done.returncode == rule.exit_code, f"{command}\n{done.stderr[-3000:]}"


def as_shell(folder, command: str) -> str:
  """Returns the shell command of a snippet, fragment or command."""
  kind, _, rest = command.partition(" ")
  if kind == "PYTHON":
    code = rest.replace('"F0"', '"femto"').replace(
      '"F0_haiku.npz"', '"femto.npz"'
    )
    (folder / "snippet.py").write_text(PRELUDE + code)
    return "python snippet.py"
  if kind == "GIN":
    (folder / "documented.gin").write_text(rest)
    return "python launch/train.py --gin_file=documented.gin --dry_run"
  if kind == "FRAGMENT":
    (base,) = (flags for name, flags in FRAGMENTS.items() if name in rest)
    return f"python launch/train.py {base} {rest} --dry_run"
  return command


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command_runs(command, workspace):
  run(workspace, command)
