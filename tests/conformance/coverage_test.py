"""Nothing public is untested or undocumented."""

import ast
import pathlib

import pytest

import nfnets_tf

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "nfnets_tf"
MODULES = sorted(
  path
  for path in PACKAGE.rglob("*.py")
  if path.name != "__init__.py" or path.parent.name == "config"
)
TESTS = {p: p.read_text() for p in (ROOT / "tests").rglob("*_test.py")}


def relative(path):
  return path.relative_to(PACKAGE).as_posix()


def public(path):
  kinds = (ast.FunctionDef, ast.ClassDef)
  return [
    node
    for node in ast.parse(path.read_text()).body
    if isinstance(node, kinds) and not node.name.startswith("_")
  ]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_has_a_test_of_its_name(path):
  stem = path.parent.name if path.name == "__init__.py" else path.stem
  twin = ROOT / "tests" / path.relative_to(PACKAGE).parent / f"{stem}_test.py"
  assert twin.exists()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_names_are_used_in_tests_and_documented(path):
  texts = [t for p, t in TESTS.items() if p != pathlib.Path(__file__)]
  for node in public(path):
    assert ast.get_docstring(node), f"{node.name} has no docstring"
    assert any(node.name in text for text in texts), f"{node.name} is untested"


def test_the_public_face():
  assert set(nfnets_tf.__all__) <= set(dir(nfnets_tf))
  for name in nfnets_tf.__all__:
    assert getattr(nfnets_tf, name).__name__ == name
  with pytest.raises(AttributeError, match="no attribute 'NFNett'"):
    nfnets_tf.NFNett  # noqa: B018
