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
