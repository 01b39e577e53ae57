"""The code and commands of the README work as written."""

import pathlib
import re

import numpy as np
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
  pattern = rf"^```{language}\n(.*?)^```$"
  return re.findall(pattern, README, re.DOTALL | re.MULTILINE)


def test_the_two_commands_stand_first():
  commands = README.split("```\n")[1].splitlines()
  assert len(commands) == 2  # .ci/run takes them from here
  assert "launch/train.py --gin_file=gin/quickstart.gin" in commands[0]
  assert commands[1] == 'pip install -e ".[test]" && python -m pytest'


def test_python_code_runs():
  r = np.random.default_rng(0)
  images = r.integers(0, 255, [16, 32, 32, 3]).astype(np.uint8)
  batches = tf.data.Dataset.from_tensor_slices(
    (images, r.integers(0, 10, 16))
  ).batch(8)
  code = "".join(blocks("python"))
  assert '"F0"' in code
  names = {"dataset": batches, "heldout": batches}
  exec(code.replace('"F0"', '"femto"'), names)
  assert names["model"].optimizer.iterations.numpy() == 2


def test_named_files_exist():
  links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
  files = re.findall(r"`((?:gin|nfnets_tf|launch|tests)/[\w./]*)`", README)
  assert len(links) > 5 and len(files) > 5
  for path in [*links, *files]:
    assert (ROOT / path).exists(), path


def test_documented_tests_exist():
  names = re.findall(
    r"`([\w/]+_test\.py)`", (ROOT / "docs" / "reliability.md").read_text()
  )
  assert len(names) > 15
  for page in (ROOT / "docs").glob("*.md"):
    names += re.findall(r"tests/([\w/]+_test\.py)", page.read_text())
  missing = [name for name in names if not (ROOT / "tests" / name).exists()]
  assert not missing
