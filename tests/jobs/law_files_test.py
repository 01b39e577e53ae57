"""What jobs leave behind."""

import json

from nfnets_tf.jobs.job import RunContext
from nfnets_tf.jobs.law_files import begin, two_columns, write_json


def test_a_folder_begins_with_its_configuration(tmp_path):
  said = []
  begin(
    RunContext(
      str(tmp_path / "a" / "b"), "X = 1\n", on_start=lambda: said.append(1)
    )
  )
  assert (tmp_path / "a" / "b" / "config.gin").read_text() == "X = 1\n"
  assert said == [1]


def test_laws_are_json(tmp_path):
  write_json(str(tmp_path), {"a": [1, None]})
  content = (tmp_path / "laws.json").read_text()
  assert json.loads(content) == {"a": [1, None]}


def test_names_stand_in_one_column():
  assert two_columns([("a", "x"), ("long", "y")]) == "a     x\nlong  y"
