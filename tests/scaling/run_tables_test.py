"""CSV files as spreadsheets and scripts write them give the same table."""

import logging

import pandas as pd
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.scaling.run_tables import find_column, parse_table
from nfnets_tf.scaling.study import RunColumns, read_runs


@pytest.fixture(autouse=True)
def propagate(monkeypatch):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)


TABLE = pd.DataFrame(
  {
    "model": ["a", "b", "c"],
    "hours": [1234.5, 20000.0, 1234567.0],
    "loss": [3.021, 2.5, 0.75],
  }
)
PLAIN = TABLE.to_csv(index=False)
EUROPEAN = "model;hours;loss\na;1.234,5;3,021\nb;20.000;2,5\nc;1.234.567;0,75\n"
FILES = {
  "plain": PLAIN,
  "mark": "\ufeff" + PLAIN,
  "windows": PLAIN.replace("\n", "\r\n"),
  "excel": "sep=;\r\n" + EUROPEAN.replace("\n", "\r\n"),
  "semicolons": PLAIN.replace(",", ";"),
  "tabs": PLAIN.replace(",", "\t"),
  "decimal commas": TABLE.to_csv(index=False, sep=";", decimal=","),
  "quoted decimal commas": 'model,hours,loss\na,"1234,5","3,021"\n'
  'b,20000,"2,5"\nc,1234567,"0,75"\n',
  "thousands": 'model,hours,loss\na,"1,234.5",3.021\nb,"20,000",2.5\n'
  'c,"1,234,567",0.75\n',
  "spaces for thousands": "model,hours,loss\na,1 234.5,3.021\n"
  "b,20\u202f000,2.5\nc,1\u00a0234\u00a0567,0.75\n",
  "index": TABLE.to_csv(),
  "row names": "model hours loss\n1 a 1234.5 3.021\n2 b 20000 2.5\n"
  "3 c 1234567 0.75\n".replace(" ", "\t"),
  "spaces after commas": PLAIN.replace(",", ", "),
  "blank lines": PLAIN.replace("\n", "\n\n"),
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_reads_the_same_table(text):
  table = parse_table(text.encode(), "t.csv")[list(TABLE)]
  pd.testing.assert_frame_equal(
    table.reset_index(drop=True), TABLE, check_dtype=False
  )


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_reads_other_encodings(encoding):
  text = PLAIN.replace("a,", "\u00e9t\u00e9,")
  assert (
    parse_table(text.encode(encoding), "t.csv")["model"][0] == "\u00e9t\u00e9"
  )


@pytest.mark.parametrize(
  "text",
  ["model,hours,loss\na,1234,5,3,021\n", "a,b\n1,2,3,4\n1\n", ""],
)
def test_refuses_what_would_be_shifted_or_is_no_table(text):
  with pytest.raises(UserError, match="'t.csv' is not a CSV table"):
    parse_table(text.encode(), "t.csv")


def test_names_values_that_are_no_numbers(caplog):
  text = "net;flops;loss;macs;epochs\n" + "".join(
    f"n;{1000 * i};{x};1;{i}\n"
    for i, x in enumerate(["2,5", "12%", "NaN", "", "-1", "0", "inf", "2,4"], 1)
  )
  columns = RunColumns("FLOPs", " Loss", "net", "macs", "epochs", None)
  runs, skipped = read_runs(parse_table(text.encode(), "t.csv"), columns)
  assert list(runs["loss"]) == [2.5, 2.4]
  assert skipped == {"without positive numbers": 6}
  assert "row 2 (n, epochs 2): loss = '12%'" in caplog.text


def test_copies_of_rows_and_rows_without_a_model_are_counted():
  table = TABLE.assign(size=1, epochs=1)
  table = pd.concat([table, table, table.iloc[:1].assign(model=None)])
  columns = RunColumns("hours", "loss", "model", "size", "epochs", None)
  runs, skipped = read_runs(table, columns)
  assert len(runs) == 3
  assert skipped == {"copies of another row": 3, "without a model": 1}


def test_finds_columns_whatever_their_case():
  table = pd.DataFrame(columns=["FLOPs ", "Loss", "loss", "A", "a "])
  assert find_column(table, "flops") == "FLOPs "
  assert find_column(table, "loss") == "loss"
  assert find_column(table, "A ") is None and find_column(table, "b") is None


def test_two_columns_of_one_name_are_refused():
  text = "model,flops,loss,flops ,,\nn,1,2,3,4,5\n"
  with pytest.raises(UserError, match="two columns 'flops'; rename or remove"):
    parse_table(text.encode(), "t.csv")
