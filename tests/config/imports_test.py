"""Modules of one's own: beside the gin file, in this folder, or installed."""

import importlib
import logging
import sys

import pytest

from nfnets_tf.config import bindings as bindings_lib
from nfnets_tf.config import imports
from nfnets_tf.errors import UserError

OPS = """import dataclasses

@dataclasses.dataclass
class Darken:
  amount: float = 0.5

  def __call__(self, image, seed):
    return image // 2
"""
GIN = """from __gin__ import dynamic_registration
import {module}

{module}.Darken.amount = 0.25
"""


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
  """What a test imports is forgotten after it."""
  before = set(sys.modules)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.setattr(imports, "_FOLDERS", {})
  yield
  for name in set(sys.modules) - before:
    del sys.modules[name]


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A folder with a gin file and a module; the current one is another."""
  folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
  folder.mkdir()
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  (folder / "my_ops.py").write_text(OPS)
  (folder / "run.gin").write_text(GIN.format(module="my_ops"))
  return folder


def test_a_module_beside_the_gin_file_is_found(project):
  bindings = bindings_lib.parse([str(project / "run.gin")])
  assert bindings.resolve("my_ops.Darken")().amount == 0.5
  assert sys.path[-1] == str(project)  # it hides no installed module


def test_a_package_beside_an_included_file_is_found(project):
  package = project / "parts" / "my_package"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  (package / "layers.py").write_text(OPS)
  (project / "parts" / "layers.gin").write_text(
    "from my_package import layers\nlayers.Darken.amount = 1.0\n"
  )
  (project / "all.gin").write_text(
    f"include '{project}/parts/layers.gin'\nimport my_ops\n"
  )
  bindings = bindings_lib.parse([str(project / "all.gin")])
  assert bindings.resolve("layers.Darken") is not bindings.resolve(
    "my_ops.Darken"
  )


def test_a_module_in_the_current_folder_is_found(project, monkeypatch):
  monkeypatch.chdir(project)
  bindings = bindings_lib.parse(
    [], ["import my_ops", "my_ops.Darken.amount = 1"]
  )
  assert bindings.resolve("my_ops.Darken")


def test_a_stored_configuration_is_read_from_anywhere(project, monkeypatch):
  """As that of a run which is resumed or exported in another process."""
  stored = bindings_lib.parse([str(project / "run.gin")]).to_text()

  def read():
    sys.modules.pop("my_ops")
    sys.path.remove(str(project))
    monkeypatch.setattr(imports, "_FOLDERS", {})
    return bindings_lib.parse([], base=("config.gin", stored))

  again = read()
  assert again.resolve("my_ops.Darken") and again.to_text() == stored
  (project / "my_ops.py").unlink()
  with pytest.raises(UserError, match=f"nor? in.* '{project}' or.*PYTHONPATH"):
    read()


def test_an_installed_module_wins_and_the_other_is_told(project, caplog):
  (project / "colorsys.py").write_text("raise AssertionError")
  (project / "a.gin").write_text("import colorsys\n")
  logger = logging.getLogger("nfnets_tf")
  logger.addHandler(caplog.handler)
  try:
    bindings = bindings_lib.parse([str(project / "a.gin")])
  finally:
    logger.removeHandler(caplog.handler)
  assert bindings.resolve("colorsys.rgb_to_hsv")
  assert f"not the one in {project}; rename yours" in caplog.text
  assert str(project) not in sys.path


def test_a_module_that_is_built_into_python_wins_and_is_told(project, caplog):
  (project / "time.py").write_text(OPS)
  (project / "a.gin").write_text("import time\n")
  logger = logging.getLogger("nfnets_tf")
  logger.addHandler(caplog.handler)
  try:
    bindings_lib.parse([str(project / "a.gin")])
  finally:
    logger.removeHandler(caplog.handler)
  assert f"Python itself, not the one in {project}; rename" in caplog.text


def test_a_package_without_an_init_is_found(project):
  (project / "my_parts").mkdir()
  (project / "my_parts" / "ops.py").write_text(OPS)
  (project / "a.gin").write_text("from my_parts import ops\n")
  bindings = bindings_lib.parse([str(project / "a.gin")])
  assert bindings.resolve("ops.Darken")().amount == 0.5


def test_a_module_on_the_path_is_not_noted(project, monkeypatch):
  monkeypatch.syspath_prepend(str(project))
  text = bindings_lib.parse([str(project / "run.gin")]).to_text()
  assert "import my_ops" in text and str(project) not in text


@pytest.mark.parametrize(
  "text, words",
  [
    ("import my_opps", "put my_opps.py beside the gin file"),
    ("from my_ops import Darken", "import my_ops and name @my_ops.Darken"),
    ("import needs_more", "which needs 'not_there_at_all'; install"),
    ("import broken", r"a.gin, line 1: importing broken failed \(SyntaxError"),
    ("import failing", r"importing failing failed \(ZeroDivisionError: .*\)"),
    ("import leaving", r"importing leaving failed \(SystemExit: 3\)"),
  ],
)
def test_a_module_that_cannot_be_imported_is_told(project, text, words):
  (project / "needs_more.py").write_text("import not_there_at_all\n")
  (project / "broken.py").write_text("def f(:\n")
  (project / "failing.py").write_text("1 / 0\n")
  (project / "leaving.py").write_text("import sys\nsys.exit(3)\n")
  (project / "a.gin").write_text(text)
  importlib.invalidate_caches()
  with pytest.raises(UserError, match=words):
    bindings_lib.parse([str(project / "a.gin")])


def test_a_flag_need_not_import_modules_of_the_package():
  """As the documentation writes bindings."""
  given = [
    "pipeline.Split.fields = @tfrecords.Fields()",
    "tfrecords.Fields.first_label = 1",
    "other/sam.SAM.rho = 0.1",
  ]
  bindings = bindings_lib.parse([], given)
  modules = {statement.module for statement in bindings.imports.values()}
  assert modules == {
    "nfnets_tf.data.pipeline",
    "nfnets_tf.data.tfrecords",
    "nfnets_tf.optim.sam",
  }
  again = bindings_lib.parse([], base=("config.gin", bindings.to_text()))
  assert again == bindings
  assert not bindings_lib.parse([], ["json.loads.s = 1"]).imports
  with pytest.raises(UserError, match="'from nfnets_tf.optim import sam'"):
    bindings = bindings_lib.Bindings()
    bindings.read_text("import json\nsam.SAM.rho = 1", "a.gin")
    bindings.resolve("sam.SAM")
