from nfnets_tf.config import statements as st

LISTING = """from __gin__ import dynamic_registration
import json
from nfnets_tf.models import nfnet

# Macros:
# ====
EPOCHS = 8
NAMES = ['100%NO', '@no.Ref()']
TABLE = \\
    {'a': 1,
     'b': 2}

# Parameters for nfnet.NFNet:
# ====
nfnet.NFNet.variant = %VARIANT
train/pipeline.Split.operations = [@a/b.C(), @d.E]
"""


def test_statements_of_one_and_more_lines():
  assert st.split_statements(LISTING) == {
    "EPOCHS": "8",
    "NAMES": "['100%NO', '@no.Ref()']",
    "TABLE": "{'a': 1, 'b': 2}",
    "nfnet.NFNet.variant": "%VARIANT",
    "train/pipeline.Split.operations": "[@a/b.C(), @d.E]",
  }


def test_macros_and_references_are_not_looked_for_in_strings():
  found = st.split_statements(LISTING)
  assert st.macros_read(found) == {"VARIANT": "nfnet.NFNet.variant"}
  assert st.references(found) == {("a", "b.C", True), ("", "d.E", False)}


def test_imports():
  assert st.imported_modules(LISTING) == {
    "json": "json",
    "nfnet": "nfnets_tf.models.nfnet",
  }
  assert len(st.import_lines(LISTING)) == 3


def test_left_sides():
  assert st.is_macro("EPOCHS")
  assert not st.is_macro("nfnet.NFNet.variant")
  parts = st.split_parameter("train/pipeline.Split.split")
  assert parts == ("train", "pipeline.Split", "split")
  assert st.split_parameter("a.B.c") == ("", "a.B", "c")


def test_differences_go_both_ways():
  before, after = {"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "9", "D": "4"}
  assert st.differences(before, after) == [
    ("B", "2", "9"),
    ("D", None, "4"),
    ("C", "3", None),
  ]


TREE = {
  "A": "1",
  "B": "%A",
  "C": "[%B, '@no.Ref()', '%NO']",
  "config.Launch.job": "@run.Job()",
  "config.Launch.sweep": "@sweep.Sweep()",
  "run.Job.size": "%C",
  "run.Job.parts": "[@parts.one, @scope/parts.Two()]",
  "scope/parts.Two.x": "@parts.Two()",  # itself
  "parts.Two.y": "3",
  "parts.Three.z": "%D",
  "sweep.Sweep.engine": "@engines.Ray()",
  "engines.Ray.at_once": "2",
  "engines.Local.at_once": "1",
}
JOB = {
  "config.Launch.job",
  "run.Job.size",
  "run.Job.parts",
  "scope/parts.Two.x",
  "parts.Two.y",
  "A",
  "B",
  "C",
}


def test_what_a_value_is_built_of_is_reached():
  assert st.reached(TREE, "config.Launch.job") == JOB
  assert st.reached(TREE, "config.Launch.sweep") == {
    "config.Launch.sweep",
    "sweep.Sweep.engine",
    "engines.Ray.at_once",
  }
  assert st.reached(TREE, "A") == {"A"}
  assert st.reached(TREE, "parts.Three.z") == {"parts.Three.z"}  # D is not set
  assert st.reached(TREE, "config.Launch.none") == set()


SWEEP = """from __gin__ import dynamic_registration
import json
from nfnets_tf import config
from nfnets_tf.models import nfnet
from nfnets_tf.scaling import compute
from nfnets_tf.scaling import engines
from nfnets_tf.scaling import sweep

EPOCHS = 8
config.Launch.job = @nfnet.NFNet()
config.Launch.sweep = @sweep.Sweep()
engines.Ray.at_once = 2
nfnet.NFNet.part = @compute.TpuV4()
scope/sweep.Sweep.engine = @engines.Ray()
"""


def test_what_binds_something_of_a_package():
  assert st.of_package(SWEEP, "nfnets_tf.scaling") == {
    "engines.Ray.at_once",
    "scope/sweep.Sweep.engine",
  }
  assert st.of_package(SWEEP, "nfnets_tf") == set(
    st.split_statements(SWEEP)
  ) - {"EPOCHS"}
  assert st.of_package(SWEEP, "nfnets_tf.scal") == set()


def test_without_statements_their_imports_go_too():
  dropped = {
    "config.Launch.sweep",
    "engines.Ray.at_once",
    "scope/sweep.Sweep.engine",
  }
  assert st.without(SWEEP, dropped).splitlines() == [
    "from __gin__ import dynamic_registration",
    "import json",
    "from nfnets_tf import config",  # config.Launch.job is left
    "from nfnets_tf.models import nfnet",
    "from nfnets_tf.scaling import compute",  # is referred to
    "EPOCHS = 8",
    "config.Launch.job = @nfnet.NFNet()",
    "nfnet.NFNet.part = @compute.TpuV4()",
  ]
  kept = st.without(SWEEP, set())
  assert st.split_statements(kept) == st.split_statements(SWEEP)
  assert st.import_lines(kept) == st.import_lines(SWEEP)
