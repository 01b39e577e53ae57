"""Nothing public is untested or undocumented."""

import ast
import pathlib

import pytest

import nfnets_tf

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "nfnets_tf"
MODULES = sorted(PACKAGE.rglob("*.py"))


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
def test_public_names_are_documented(path):
  for node in public(path):
    assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_public_face():
  assert set(nfnets_tf.__all__) <= set(dir(nfnets_tf))
  for name in nfnets_tf.__all__:
    assert getattr(nfnets_tf, name).__name__ == name
  with pytest.raises(AttributeError, match="no attribute 'NFNett'"):
    nfnets_tf.NFNett  # noqa: B018
