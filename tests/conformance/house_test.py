"""The house: floors, sizes, names."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "nfnets_tf"
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.py")])
FLOORS = {
  "ops": 0,
  "models": 1,
  "optim": 1,
  "data": 1,
  "train": 2,
  "serving": 2,
  "scaling": 2,
  "jobs": 3,
  "config": 4,
}
# Composition roots: they list what a run is made of.
LONG_BY_DESIGN = {"nfnets_tf/jobs/train.py:__init__"}


def imports(path):
  """Yields (package of this project, or other top-level name) imported."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      yield parts[1] if parts[0] == "nfnets_tf" else f"{parts[0]} (other)"


def relative(path):
  return path.relative_to(ROOT).as_posix()


def offences(source_package, imported):
  """Whether an import goes up, or sideways to a sibling."""
  if imported not in FLOORS or imported == source_package:
    return False
  return FLOORS[imported] >= FLOORS[source_package]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_downwards_only(path):
  package = (
    path.relative_to(PACKAGE).parts[0] if PACKAGE in path.parents else ""
  )
  if package in FLOORS:
    assert [n for n in imports(path) if offences(package, n)] == []


def test_the_law_of_the_floors_sees_an_offence():
  assert offences("models", "train") and offences("models", "optim")
  assert not offences("train", "ops") and not offences("train", "train")


def test_every_package_has_a_floor():
  packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
  assert packages == set(FLOORS)


@pytest.mark.parametrize(
  "library, homes",
  [("gin", {"config"}), ("tensorflow_addons", {"data"}), ("absl", {"launch"})],
)
def test_a_library_stays_in_its_room(library, homes):
  users = {
    path.parent.name
    for path in FILES
    if f"{library} (other)" in set(imports(path))
  }
  assert users <= homes


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_keras_alone(path):
  assert "keras.src" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_stay_small(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 250
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      first = node.body[0]
      documented = ast.get_docstring(node) is not None
      start = first.end_lineno if documented else node.lineno
      length = node.end_lineno - start
      name = f"{relative(path)}:{node.name}"
      assert length <= 40 or name in LONG_BY_DESIGN, (name, length)


def test_no_room_for_what_has_no_home():
  names = {path.stem for path in FILES}
  assert not names & {"utils", "util", "common", "helpers", "base", "misc"}
  assert not (ROOT / "gin" / "__init__.py").exists()  # would shadow the library


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_annotations_of_alternatives_are_not_evaluated(path):
  """`X | Y` is no expression of types in Python 3.9."""
  tree = ast.parse(path.read_text())
  found = [
    node.lineno
    for holder in ast.walk(tree)
    for name in ("annotation", "returns")
    if (node := getattr(holder, name, None)) is not None
    if any(isinstance(part, ast.BitOr) for part in ast.walk(node))
  ]
  future = any(
    isinstance(node, ast.ImportFrom) and node.module == "__future__"
    for node in tree.body
  )
  assert future or not found
