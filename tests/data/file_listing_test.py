"""What is data below a folder: by `ImageFolder` and `CsvTable`."""

import os
import pathlib
import socket

import pytest
import tensorflow as tf

from nfnets_tf.data.example_sources import CsvTable
from nfnets_tf.data.image_folder import ImageFolder
from nfnets_tf.errors import UserError

LEFT_BEHIND = [
  ".ipynb_checkpoints",
  "__MACOSX",
  "@eaDir",
  ".git",
  ".Trash-1000",
  "$RECYCLE.BIN",
  "System Volume Information",
  "lost+found",
  ".AppleDouble",
  "__pycache__",
  ".thumbnails",
  ".picasaoriginals",
  "#recycle",
]


def write_images(root, *paths):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(path.encode())
  return root


@pytest.fixture
def photos(tmp_path):
  """Two classes of two images."""
  paths = ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]
  return write_images(tmp_path / "photos", *paths)


def listed(root, fraction=0.5):
  """Returns {path: class} of all images, and checks that each comes once."""
  source = ImageFolder(directory=str(root), heldout_fraction=fraction)
  images = [image for part in source.splits.values() for image in part]
  assert len(dict(images)) == len(images)
  return {path: source.class_names[label] for path, label in images}


EXPECTED = {
  "cat/0.jpg": "cat",
  "cat/1.jpg": "cat",
  "dog/0.jpg": "dog",
  "dog/1.jpg": "dog",
}


def test_what_tools_leave_behind_is_no_data(photos, caplog):
  for name in LEFT_BEHIND:
    for folder in (".", "cat", "cat/deep/er"):
      write_images(photos, f"{folder}/{name}/x.jpg")
  write_images(photos, "cat/._0.jpg", "cat/Thumbs.db", "desktop.ini")
  assert listed(photos) == EXPECTED
  assert len(caplog.records) == 1
  assert f"{3 * len(LEFT_BEHIND) + 3} hidden or left" in caplog.text


def test_split_folders_hold_no_left_behind_classes(photos, tmp_path):
  root = tmp_path / "root"
  for part in ("train", "test"):
    for path in EXPECTED:
      write_images(root, f"{part}/{path}")
    write_images(root, f"{part}/.ipynb_checkpoints/x.jpg")
    write_images(root, f"{part}/__MACOSX/cat/x.jpg")
  assert len(listed(root)) == 8
  # A class called "train", whose images a file server made thumbnails of.
  write_images(photos, "train/0.jpg", "train/@eaDir/0.jpg")
  assert listed(photos)["train/0.jpg"] == "train"


def test_links_back_are_not_followed(photos, tmp_path, caplog):
  for link, target in (
    ("cat/all", ".."),
    ("cat/self", "."),
    ("cat/above", "../.."),
    ("everything", "."),
  ):
    (photos / link).symlink_to(target)
  elsewhere = write_images(tmp_path / "elsewhere", "2.jpg")
  (elsewhere / "back").symlink_to(photos)
  (elsewhere / "up").symlink_to("..")
  (photos / "cat" / "more").symlink_to(elsewhere)
  assert listed(photos) == {**EXPECTED, "cat/more/2.jpg": "cat"}
  assert "6 links to a folder that holds them" in caplog.text


def test_links_to_data_elsewhere_are_followed(photos, tmp_path):
  birds = write_images(tmp_path / "birds", "0.jpg", "deep/1.jpg")
  (photos / "bird").symlink_to(birds)
  (photos / "cat" / "2.jpg").symlink_to(birds.parent / "lone.jpg")
  write_images(tmp_path, "lone.jpg")
  (tmp_path / "link").symlink_to(photos)
  more = {"cat/2.jpg": "cat", "bird/0.jpg": "bird", "bird/deep/1.jpg": "bird"}
  assert listed(tmp_path / "link") == {**EXPECTED, **more}


def test_files_with_several_paths_count_once(photos, caplog):
  write_images(photos, "cat/b/2.jpg")
  (photos / "cat" / "a").symlink_to("b")  # comes before its target
  (photos / "cat" / "00.jpg").symlink_to("1.jpg")
  os.link(photos / "dog/0.jpg", photos / "dog/2.jpg")
  assert listed(photos) == {**EXPECTED, "cat/b/2.jpg": "cat"}
  assert "3 second paths" in caplog.text
  assert "'cat/a' (the same as 'cat/b')" in caplog.text


@pytest.mark.parametrize(
  "link, target", [("kitten", "cat"), ("dog/a", "../cat"), ("dog/a.jpg", None)]
)
def test_rejects_a_file_of_two_classes(photos, link, target):
  if target:
    (photos / link).symlink_to(target)
  else:
    os.link(photos / "cat/0.jpg", photos / link)
  with pytest.raises(
    UserError, match=f"'cat/0.jpg' and '{link}.*same file, of"
  ):
    listed(photos)


def test_rejects_a_file_on_both_sides(photos, tmp_path):
  photos.rename(tmp_path / "train")
  (tmp_path / "test").symlink_to("train")
  with pytest.raises(UserError, match="same file, trained on and held out"):
    listed(tmp_path)


def test_pipes_and_sockets_are_not_read(photos, caplog, monkeypatch):
  os.mkfifo(photos / "cat" / "pipe.jpg")
  (photos / "cat" / "link.jpg").symlink_to("pipe.jpg")
  monkeypatch.chdir(photos / "cat")  # the path of a socket is short
  with socket.socket(socket.AF_UNIX) as bound:
    bound.bind("socket.jpg")
  write_images(photos, "cat/folder.jpg/2.jpg", "loose.jpg")
  assert listed(photos) == {**EXPECTED, "cat/folder.jpg/2.jpg": "cat"}
  assert "3 neither files nor folders" in caplog.text
  assert "1 not in the folder of a class, such as 'loose.jpg'" in caplog.text


def test_names_may_be_of_any_kind(tmp_path):
  paths = ["kä [1]/a b.jpg", "kä [1]/*?.JPG", "雪/#1.jpeg", "雪/$x.png"]
  root = write_images(tmp_path / "r [2]", *paths)
  latin = os.fsencode(root / "雪") + b"/\xe9.jpg"
  with open(latin, "wb") as file:
    file.write(b"latin")
  assert set(paths) < set(listed(root))
  source = ImageFolder(directory=str(root), heldout_fraction=0.5)
  contents = {
    record.filename: record.encoded
    for part in source.splits.values()
    for record in map(source.read, part)
  }
  assert contents == {
    **{x: x.encode() for x in paths},
    "雪/\ufffd.jpg": b"latin",
  }
  os.mkdir(os.fsencode(root) + b"/\xe9")
  with pytest.raises(UserError, match="not UTF-8.* rename it"):
    ImageFolder(directory=f"{root}/.", heldout_fraction=0.5)


def test_order_follows_from_the_names(tmp_path):
  """Folders list their entries in the order in which they were made, or so."""
  paths = ["a/z.jpg", "a/a/3.jpg", "a/b/1.jpg", "a/b/2.jpg"]
  for root, order in ((tmp_path / "x", paths), (tmp_path / "y", paths[::-1])):
    write_images(root, *order, "b/1.jpg")
    source = ImageFolder(directory=str(root), heldout_fraction=0.1)
    (out,) = (x for x, label in source.splits["heldout"] if label == 0)
    kept = [x for x, label in source.splits["train"] if label == 0]
    assert kept == [path for path in paths if path != out]


def test_folder_that_cannot_be_listed_is_named(photos, monkeypatch):
  """Root may read anything, hence the fake."""
  scan = os.scandir

  def refuse(path):
    if str(path).endswith("dog"):
      raise PermissionError(13, "Permission denied")
    return scan(path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(UserError, match="dog' cannot be listed .Permission den"):
    listed(photos)


def test_remote_folders_are_listed_alike():
  root = "ram://photos"
  for path in (*EXPECTED, "cat/.ipynb_checkpoints/x.jpg", "@eaDir/x.jpg"):
    tf.io.gfile.makedirs(f"{root}/{os.path.dirname(path)}")
    with tf.io.gfile.GFile(f"{root}/{path}", "w") as file:
      file.write("x")
  assert listed(root) == EXPECTED


def read_table(root, *lines):
  path = pathlib.Path(root, "table.csv")
  path.write_text("\n".join(["path,label,split", *lines]))
  table = CsvTable(path=str(path), directory=str(root), heldout_fraction=0.5)
  return table.splits


def test_table_counts_a_file_once(photos, caplog):
  (photos / "link.jpg").symlink_to("cat/0.jpg")
  splits = read_table(
    photos,
    "cat/0.jpg,0,train",
    "cat/0.jpg,0,train",
    "./cat/../cat/0.jpg,0,train",
    "link.jpg,0,train",
    f"{photos}/cat/0.jpg,0,train",
    "cat/.ipynb_checkpoints/0-checkpoint.jpg,0,val",
    ".mine/0.jpg,0,train",
    "dog/0.jpg,1,val",
  )
  assert splits == {
    "train": [("cat/0.jpg", 0), (".mine/0.jpg", 0)],
    "heldout": [("dog/0.jpg", 1)],
  }
  assert "4 second paths" in caplog.text and "1 hidden or left" in caplog.text


def test_table_with_one_file_twice_is_rejected(photos):
  with pytest.raises(UserError, match="same file, of the classes '0' and '1'"):
    read_table(photos, "cat/0.jpg,0,train", "./cat/0.jpg,1,train")
  with pytest.raises(UserError, match="same file, trained on and held out"):
    read_table(photos, "cat/0.jpg,0,train", "./cat/0.jpg,0,val")
  with pytest.raises(UserError, match="all paths .* left behind by a tool"):
    read_table(photos, "__MACOSX/0.jpg,0,train")


def test_table_does_not_wait_for_a_pipe(photos):
  os.mkfifo(photos / "pipe.jpg")
  (photos / "table.csv").write_text("path,label\npipe.jpg,0\ncat/0.jpg,0\n")
  table = CsvTable(
    path=str(photos / "table.csv"),
    directory=str(photos),
    heldout_fraction=0.5,
  )
  with pytest.raises(OSError, match="pipe.jpg is not a file"):
    table.read(("pipe.jpg", 0))
