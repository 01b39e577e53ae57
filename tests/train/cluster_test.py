import json

import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.train.cluster import Cluster, read_cluster

TWO = ["a:1", "b:2"]


def given(workers=TWO, kind="worker", index=0, **jobs):
  task = {"type": kind, "index": index}
  return {"cluster": {"worker": workers, **jobs}, "task": task}


@pytest.fixture
def read(monkeypatch):
  def read(value):
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv("TF_CONFIG", text)
    return read_cluster()

  return read


def test_where_it_is_not_set_there_is_none(monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  assert read_cluster() is None


@pytest.mark.parametrize(
  "value", ["", " \n", {}, {"cluster": {}}, {"cluster": None}, {"task": None}]
)
def test_without_workers_there_is_none(read, value):
  assert read(value) is None


@pytest.mark.parametrize(
  "value, expected",
  [
    (given(), Cluster(("a:1", "b:2"), 0)),
    (given(index=1), Cluster(("a:1", "b:2"), 1)),
    (given(index="1"), Cluster(("a:1", "b:2"), 1)),  # as a shell writes it
    (given(["a:1"]), Cluster(("a:1",), 0)),
    (given(["[::1]:22"]), Cluster(("[::1]:22",), 0)),
    # TensorFlow counts a chief before the workers.
    (given(chief=["c:3"]), Cluster(("c:3", "a:1", "b:2"), 1)),
    (given(chief=["c:3"], index=1), Cluster(("c:3", "a:1", "b:2"), 2)),
    (given(chief=["c:3"], kind="chief"), Cluster(("c:3", "a:1", "b:2"), 0)),
  ],
)
def test_who_the_workers_are(read, value, expected):
  assert read(value) == expected


@pytest.mark.parametrize(
  "value, cause",
  [
    ("{'cluster'", "JSONDecodeError: "),
    ("[1]", "AttributeError: 'list' object"),
    (
      {"cluster": TWO, "task": {"type": "worker", "index": 0}},
      "TypeError: ",
    ),
    ({"cluster": {"worker": TWO}}, "KeyError: 'type'"),
    ({"cluster": {"worker": TWO}, "task": {"type": "worker"}}, "'index'"),
    (given(index="first"), "no worker of index first"),
    (given(index=None), "no worker of index None"),
    (given(None), "TypeError: 'NoneType'"),
    (given(index=2), "there is no worker of index 2"),
    (given(index=-1), "there is no worker of index -1"),
    (given([]), "there is no worker of index 0"),
    (given(kind="chief"), "there is no chief of index 0"),
    (given(kind="ps"), "(ps can have no part in it)"),
    (given(ps=["c:3"]), "(ps can have no part in it)"),
    (given(kind=3), "3 can have no part in it"),
    (given(["a:1", "b"]), "'b' is not HOST:PORT"),
    (given(["a:1", ":2"]), "':2' is not HOST:PORT"),
    (given(["a:1", "b:x"]), "'b:x' is not HOST:PORT"),
    (given("a:1"), "'a' is not HOST:PORT"),
    (given([1, 2]), "1 is not HOST:PORT"),
    (given(["a:1", "a:1"]), "two workers have the same address"),
    (given(chief=["c:3", "d:4"]), "chief"),  # TensorFlow takes one
    (given(["a:1"], chief=["a:1"]), "two workers have the same address"),
  ],
)
def test_what_cannot_be_used_is_named(read, value, cause):
  with pytest.raises(UserError) as error:
    read(value)
  message = str(error.value)
  shown = value if isinstance(value, str) else json.dumps(value)
  assert message.startswith(f"TF_CONFIG = {shown} cannot be used (")
  assert cause in message.removeprefix(f"TF_CONFIG = {shown}")
  assert "the index another in each process" in message


def test_of_a_long_one_the_beginning_is_shown(read):
  with pytest.raises(UserError) as error:
    read(given([f"host{i}:1" for i in range(1000)], index=1000))
  assert "... cannot be used (there is no worker of" in str(error.value)
  assert len(str(error.value)) < 500


def test_one_that_is_written_on_several_lines_is_one_sentence(read):
  with pytest.raises(UserError) as error:
    read(json.dumps(given(index=2), indent=2))
  (sentence,) = str(error.value).splitlines()
  assert "there is no worker of index 2" in sentence
