"""The architecture: import floors and order, function sizes, public names."""

import ast
import importlib.util
import pathlib
import warnings

import pytest
import tensorflow as tf

import nfnets_tf

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "nfnets_tf"
FILES = sorted(
  path
  for folder in ("nfnets_tf", "launch", "benchmarks", "examples", "tools")
  for path in (ROOT / folder).rglob("*.py")
)
MAX_FLOORS = 8
MAX_LONG_FUNCTIONS = 0
# Package: packages that it may import besides itself and the root's modules.
_BELOW_TRAIN = {"ops", "optim", "models", "data"}
MAY_IMPORT = {
  "ops": set(),
  "optim": {"ops"},
  "models": {"ops", "optim"},
  "data": {"ops"},
  "train": _BELOW_TRAIN,
  "serving": {*_BELOW_TRAIN, "train"},
  "scaling": {*_BELOW_TRAIN, "train"},
  "config": set(),
  "jobs": {*_BELOW_TRAIN, "train", "serving", "scaling", "config"},
}
# Library: the only packages that may import it ("" is the package's root).
CONFINED = {
  "gin": {"config"},
  "absl": {"", "launch"},
  "ray": {"scaling", "jobs"},
  "jinja2": {"scaling"},
  "official": {"models", "data", "train", "ops"},
}


@pytest.fixture(scope="module")
def house():
  """The module tools/house.py."""
  path = ROOT / "tools" / "house.py"
  spec = importlib.util.spec_from_file_location("house", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def modules(house):
  return house.read_modules()


def get_package(module):
  parts = module.split(".")
  path = PACKAGE / parts[1] if len(parts) > 1 else PACKAGE
  return parts[1] if path.is_dir() and path != PACKAGE else ""


def test_imports_have_few_floors_and_no_cycle(house, modules):
  levels = house.floors(house.import_graph(modules))  # raises at a cycle
  assert max(levels.values()) <= MAX_FLOORS


def test_a_cycle_of_imports_is_detected(house):
  with pytest.raises(ValueError, match="cycle: a -> b -> a"):
    house.floors({"a": {"b"}, "b": {"a"}})


def test_packages_import_downwards_only(house, modules):
  packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert packages == set(MAY_IMPORT)
  upwards = [
    f"{name} imports {imported}"
    for name, below in house.import_graph(modules).items()
    for imported in below
    if (package := get_package(name))
    and get_package(imported) not in {*MAY_IMPORT[package], package, ""}
  ]
  assert not upwards


def test_functions_are_short(house, modules):
  long = house.long_functions(modules)
  assert len(long) <= MAX_LONG_FUNCTIONS, long


def imported_libraries(tree):
  """Yields the top-level names of absolute imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      yield node.module.split(".")[0]


def test_libraries_are_confined_to_their_packages(modules):
  users = {library: set() for library in CONFINED}
  for name, tree in modules.items():
    for library in imported_libraries(tree):
      if library in users:
        users[library].add(get_package(name))
  for library, packages in users.items():
    assert packages <= CONFINED[library], library


def relative(path):
  return path.relative_to(ROOT).as_posix()


def has_union_annotation(tree):
  """Returns whether an annotation is `X | Y`, an error in Python 3.9."""
  hints = []
  for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      hints.append(node.returns)
    elif isinstance(node, (ast.arg, ast.AnnAssign)):
      hints.append(node.annotation)
  return any(
    isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr)
    for hint in hints
    if hint is not None
    for part in ast.walk(hint)
  )


def test_sources_suit_python_3_9_and_public_keras():
  for path in FILES:
    text = path.read_text()
    assert "keras.src" not in text, relative(path)
    if has_union_annotation(ast.parse(text)):
      assert "from __future__ import annotations" in text, relative(path)


def test_deprecations_in_own_code_are_errors():
  place = f"{PACKAGE}/train/loop.py"
  with pytest.raises(DeprecationWarning, match="old"):
    tf.get_logger().warning("From %s:7: old is deprecated.", place)
  tf.get_logger().warning("From /site/keras.py:7: old is deprecated.")
  for category in (DeprecationWarning, FutureWarning):
    with pytest.raises(category, match="old"):
      warnings.warn_explicit("old", category, place, 7, "nfnets_tf.train.loop")
    warnings.warn_explicit("old", DeprecationWarning, "/site/x.py", 7, "google")


def test_public_names_resolve():
  assert set(nfnets_tf.__all__) <= set(dir(nfnets_tf))
  for name in set(nfnets_tf.__all__) - {"keras"}:
    assert getattr(nfnets_tf, name).__name__ == name
  assert issubclass(nfnets_tf.NFNet, nfnets_tf.keras.Model)
  with pytest.raises(AttributeError, match="no attribute 'NFNett'"):
    nfnets_tf.NFNett  # noqa: B018
