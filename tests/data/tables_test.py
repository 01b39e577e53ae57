import pytest

from nfnets_tf.data.tables import Table, read_table
from nfnets_tf.errors import UserError


@pytest.fixture
def write(tmp_path):
  """Writes lines of a CSV file; returns its path."""

  def write(*lines):
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "a.csv")

  return write


def test_numbers_and_splits(write):
  path = write("label,split,path", "0,Train,a", "03,val,b")
  assert read_table(path, 0.1) == Table(
    ("0", "1", "2", "3"),
    {"train": [("a", 0)], "heldout": [("b", 3)]},
    "the column split",
  )


def test_names_are_sorted_and_a_share_is_held_out(write):
  images = [(f"{i}.png", "cba"[i % 3]) for i in range(300)]
  path = write("path,label", *map(",".join, images))
  table = read_table(path, 0.2)
  assert table.class_names == ("a", "b", "c") and "0.2" in table.rule
  labels = {p: label for part in table.splits.values() for p, label in part}
  assert labels == {p: "abc".index(name) for p, name in images}
  assert 40 <= len(table.splits["heldout"]) <= 80
  # An image stays where it is when others come.
  more = read_table(write("path,label", "new,a", *map(",".join, images)), 0.2)
  assert set(table.splits["heldout"]) <= set(more.splits["heldout"])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_of_two_images_one_is_on_either_side(write, share):
  splits = read_table(write("path,label", "x,a", "y,b"), share).splits
  assert [len(splits[name]) for name in ("train", "heldout")] == [1, 1]


def test_as_a_spreadsheet_saves_it(tmp_path):
  text = 'path,label\r\n"x","grün, ² hell"\r\n\r\ny,"a\nb"\r\n'
  path = tmp_path / "b.csv"
  path.write_bytes(b"\xef\xbb\xbf" + text.encode())
  assert read_table(str(path), 0.5).class_names == ("a\nb", "grün, ² hell")
  path.write_bytes("path,label\nx,gr\xfcn\n".encode("latin-1"))
  assert read_table(str(path), 0.5).class_names == ("gr\ufffdn",)


def test_names_that_look_like_digits_are_names(write):
  assert read_table(write("path,label", "x,²"), 0.5).class_names == ("²",)
  path = write("path,label", "x,1.5", "y,dog")
  assert read_table(path, 0.5).class_names == ("1.5", "dog")


@pytest.mark.parametrize(
  "lines, message",
  [
    (["file,label", "a,b"], r"1 lines below .* \['file', 'label'\]; expected"),
    (["path;label", "a;b"], "separated by commas"),
    (["path,label"], "0 lines below"),
    ([], "0 lines below"),
    (["path,label", "a,"], r"line 2 of .* is \['a', ''\]"),
    (["path,label", "", "", "a,"], "line 4 of"),
    (["path,label", "a"], "line 2 of .* expected a path and a label"),
    (["path,label", "a,b,c"], "line 2 of"),
    (["path,label", "a,0", "b,-1"], "holds '-1', which is no class number"),
    (["path,label", "a,0", "b,1.0"], "holds '1.0', which is no class number"),
    (["path,label", "a,20261121"], "goes up to 20,261,121"),
    (["path,label", "a,0", "a,1"], "line 3 of .* gives 'a' another label"),
    (["path,label,split", "a,0,train", "a,0,val"], "another label or split"),
    (["path,label,split", "a,0,train", "b,0,"], "holds '', 'train'; expected"),
    (["path,label,split", "a,0,val", "b,0,test"], "holds 'test', 'val'"),
    (["path,label,split", "a,0,my/split"], "holds 'my/split'; expected train"),
  ],
)
def test_files_that_cannot_be_used(write, lines, message):
  with pytest.raises(UserError, match=message):
    read_table(write(*lines), 0.1)


def test_a_file_that_is_not_there(tmp_path):
  for path in (tmp_path / "none.csv", tmp_path):
    with pytest.raises(UserError, match="does not exist; bind CSV to a file"):
      read_table(str(path), 0.1)


def test_a_share_that_cannot_be(write):
  with pytest.raises(UserError, match="HELDOUT_SHARE = 7 cannot"):
    read_table(write("path,label", "x,a"), 7)
