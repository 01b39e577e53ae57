import pytest

from nfnets_tf.config import bindings as bindings_lib
from nfnets_tf.config.bindings import Bindings, Macro, Reference
from nfnets_tf.errors import UserError

TEXT = """from __gin__ import dynamic_registration
import json
from nfnets_tf.models import nfnet
from nfnets_tf.optim import sgd

EPOCHS = 8
NAMES = ['100%NO', '@no.Ref()']
TABLE = {'a': (1, -2.5),
         'b': %EPOCHS}

nfnet.NFNet:
  # a comment
  variant = %VARIANT
  activation = @json.loads
train/sgd.SGD.clipping = [@a/sgd.SGD(), @json.loads]
"""


def read(text=TEXT, source="a.gin"):
  bindings = Bindings()
  bindings.read_text(text, source)
  return bindings


def test_values_and_places():
  bindings = read()
  assert dict(bindings) == {
    "EPOCHS": 8,
    "NAMES": ["100%NO", "@no.Ref()"],
    "TABLE": {"a": (1, -2.5), "b": Macro("EPOCHS")},
    "nfnet.NFNet.variant": Macro("VARIANT"),
    "nfnet.NFNet.activation": Reference("json.loads", False),
    "train/sgd.SGD.clipping": [
      Reference("a/sgd.SGD", True),
      Reference("json.loads", False),
    ],
  }
  assert bindings.places["EPOCHS"] == "a.gin, line 6"
  assert bindings.places["nfnet.NFNet.variant"] == "a.gin, line 13"


def test_text_reads_back_to_the_same_bindings():
  bindings = read()
  again = read(bindings.to_text())
  assert dict(again) == dict(bindings)
  assert set(again.imports) == set(bindings.imports) == {"json", "nfnet", "sgd"}
  assert again.to_text() == bindings.to_text()


def test_files_are_found_in_the_current_directory_and_the_project(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert "EPOCHS" in bindings_lib.parse(["gin/quickstart.gin"])
  (tmp_path / "mine.gin").write_text("A = 1")
  assert bindings_lib.parse(["mine.gin"]) == {"A": 1}
  for path in ("gin", "no.gin"):
    with pytest.raises(UserError, match=f"'{path}' does not exist"):
      bindings_lib.parse([path])


def test_later_statements_win_through_includes(tmp_path):
  (tmp_path / "b.gin").write_text("A = 1\nB = 1\n")
  (tmp_path / "a.gin").write_text(f"include '{tmp_path}/b.gin'\nB = 2\n")
  bindings = bindings_lib.parse([f"{tmp_path}/a.gin"], ["C = 3", "C = 4"])
  assert dict(bindings) == {"A": 1, "B": 2, "C": 4}
  assert bindings.places["A"] == f"{tmp_path}/b.gin, line 1"
  assert bindings.includes == {f"{tmp_path}/a.gin": [f"{tmp_path}/b.gin"]}
  assert bindings.places["C"] == "--gin_param='C = 4'"
  base = bindings_lib.parse([], ["B = 2"], base=("run", "A = 0\nB = 0"))
  assert dict(base) == {"A": 0, "B": 2}


def test_files_are_found_beside_the_one_that_includes_them(
  tmp_path, monkeypatch
):
  (tmp_path / "a" / "b").mkdir(parents=True)
  (tmp_path / "a" / "x.gin").write_text("include 'b/y.gin'\nA = 1\n")
  (tmp_path / "a" / "b" / "y.gin").write_text("include 'z.gin'\nB = 1\n")
  (tmp_path / "a" / "b" / "z.gin").write_text("C = 1\n")
  monkeypatch.chdir(tmp_path)
  for path in ("a/x.gin", str(tmp_path / "a" / "x.gin")):
    parsed = bindings_lib.parse([path])
    assert dict(parsed) == {"A": 1, "B": 1, "C": 1}
    assert parsed.includes[path] == [path.replace("x.gin", "b/y.gin")]
  (tmp_path / "z.gin").write_text("C = 2\n")
  assert bindings_lib.parse(["a/x.gin"])["C"] == 2  # of this folder first


@pytest.mark.parametrize(
  "content",
  [
    b"\xef\xbb\xbfA = 'gr\xc3\xbcn'\r\nB = 2\r\n",
    "A = 'gr\u00fcn'\rB = 2".encode("utf-16"),
    b"A = 'gr\xc3\xbcn'\nB = 2",
  ],
)
def test_text_as_other_editors_write_it(content, tmp_path):
  (tmp_path / "x.gin").write_bytes(content)
  parsed = bindings_lib.parse([str(tmp_path / "x.gin")])
  assert dict(parsed) == {"A": "gr\u00fcn", "B": 2}
  assert parsed.places["B"].endswith("line 2")


def test_text_of_another_encoding(tmp_path):
  (tmp_path / "x.gin").write_bytes(b"# gr\xfcn\nA = 1\n")
  with pytest.raises(UserError, match="x.gin' is not in UTF-8 .* save it in"):
    bindings_lib.parse([str(tmp_path / "x.gin")])


@pytest.mark.parametrize(
  "text, words",
  [
    ("A = 1\nA 3\n", "a.gin, line 2: gin cannot parse"),
    ("A = [1\n", "a.gin.*gin cannot parse"),
    ("A = 1\nx.Y:\n  b = \n", "a.gin, line 3: gin cannot parse"),
    ("include 'gin/quickstrt.gin'", "a.gin, line 1.*mean 'gin/quickstart.gin'"),
    ("from nfnets_tf import nothing", "a.gin, line 1: cannot import"),
    (
      "from nfnets_tf.optim import sgd\nimport json as sgd\n",
      "a.gin, line 2: 'sgd' is already nfnets_tf.optim.sgd",
    ),
  ],
)
def test_syntax_errors_are_located(text, words):
  with pytest.raises(UserError, match=words):
    read(text)


@pytest.mark.parametrize(
  "selector, words",
  [
    ("nfnet.NFNett", "there is no 'nfnet.NFNett'; did you mean 'nfnet.NFNet'"),
    ("nfnett.NFNet", "imports the module of 'nfnett.NFNet'.*'nfnet.NFNet'"),
    ("nfnett", "no gin file imports 'nfnett'; did you mean 'nfnet'"),
  ],
)
def test_unknown_selectors(selector, words):
  with pytest.raises(UserError, match=words):
    read().resolve(selector)


def test_parameters_of_a_selector():
  names = read().parameters("nfnet.NFNet")
  assert {"variant", "num_classes"} <= set(names)
  assert "kwargs" not in names


def test_split_parameter():
  split = bindings_lib.split_parameter
  assert split("train/pipeline.Split.split") == (
    "train",
    "pipeline.Split",
    "split",
  )
  assert split("a.B.c") == ("", "a.B", "c")


def test_changes_are_found_both_ways():
  before, now = {"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "9", "D": "4"}
  assert bindings_lib.find_changes(before, now) == [
    ("B", "2", "9"),
    ("D", None, "4"),
    ("C", "3", None),
  ]


def test_dependencies_of_a_value():
  tree = read(
    """A = 1
B = %A
C = [%B, '@no.Ref()', '%NO']
config.Launch.job = @run.Job()
config.Launch.sweep = @sweep.Sweep()
run.Job.size = %C
run.Job.parts = [@parts.one, @scope/parts.Two()]
scope/parts.Two.x = @parts.Two()
parts.Two.y = 3
parts.Three.z = %D
sweep.Sweep.engine = @engines.Ray()
engines.Ray.at_once = 2
engines.Local.at_once = 1
"""
  )
  assert tree.dependencies("config.Launch.job") == {
    "config.Launch.job",
    "run.Job.size",
    "run.Job.parts",
    "scope/parts.Two.x",
    "parts.Two.y",
    "A",
    "B",
    "C",
  }
  assert tree.dependencies("config.Launch.sweep") == {
    "config.Launch.sweep",
    "sweep.Sweep.engine",
    "engines.Ray.at_once",
  }
  assert tree.dependencies("parts.Three.z") == {"parts.Three.z"}
  assert tree.dependencies("config.Launch.none") == set()


def test_removing_bindings_removes_their_imports():
  bindings = read()
  names = {"train/sgd.SGD.clipping"}
  assert bindings.in_package("nfnets_tf.optim") == names
  kept = bindings.without(names)
  assert set(kept) == set(bindings) - names
  assert set(kept.imports) == {"json", "nfnet"}  # json is still referred to
  assert bindings.without(set()).to_text() == bindings.to_text()
