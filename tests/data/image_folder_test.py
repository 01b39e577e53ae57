import os
import pickle
import shutil

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.file_listing import describe_file
from nfnets_tf.data.image_folder import ImageFolder, digest
from nfnets_tf.errors import UserError


@pytest.fixture
def folder(tmp_path):
  """Three classes of 10, 5 and 1 images."""
  for name, count in (("a", 10), ("b", 5), ("c", 1)):
    (tmp_path / "folder" / name).mkdir(parents=True)
    for i in range(count):
      (tmp_path / "folder" / name / f"{i}.jpg").touch()
  return tmp_path / "folder"


def read(folder, fraction=0.2):
  return ImageFolder(directory=str(folder), heldout_fraction=fraction)


def copy(folder):
  """Returns a copy that has not been listed yet."""
  return shutil.copytree(folder, folder.with_name(f"{folder.name}_copy"))


def test_holds_out_a_fraction_of_every_class(folder):
  source = read(folder)
  assert source.class_names == tuple("abc")
  train, heldout = source.splits["train"], source.splits["heldout"]
  assert [label for _, label in heldout] == [0, 0, 1]  # never the only image
  assert [label for _, label in train] == [0] * 8 + [1] * 4 + [2]
  paths = [path for path, _ in (*train, *heldout)]
  assert len(set(paths)) == 16
  assert all(path[0] == "abc"[label] for path, label in (*train, *heldout))
  assert "0.2 of every class" in source.split_rule


def test_split_depends_only_on_the_names(folder):
  splits = read(folder, 0.3).splits
  moved = copy(folder)
  assert read(moved, 0.3).splits == splits
  # One image more moves at most one image across the line of its class.
  more = copy(moved)
  (more / "a" / "more.jpg").touch()
  heldout = set(read(more, 0.3).splits["heldout"])
  assert len(heldout - set(splits["heldout"])) <= 1


def test_held_out_images_spread_over_the_names(tmp_path):
  """The first ones may be one day's photographs."""
  for name in "ab":
    (tmp_path / name).mkdir()
    for i in range(100):
      (tmp_path / name / f"{i:03}.jpg").touch()
  heldout = read(tmp_path, 0.1).splits["heldout"]
  numbers = [int(path[2:5]) for path, label in heldout if label == 0]
  assert len(numbers) == 10 and 30 < sum(numbers) / 10 < 70
  assert max(numbers) - min(numbers) > 50


def test_ignores_other_files_and_reads_deeper_folders(folder, caplog):
  (folder / "a" / "notes.txt").touch()
  (folder / "a" / ".hidden").touch()
  (folder / ".git").mkdir()
  (folder / "b" / "deep").mkdir()
  (folder / "b" / "deep" / "x.PNG").touch()
  paths = [p for part in read(folder).splits.values() for p, _ in part]
  assert len(paths) == 17 and "b/deep/x.PNG" in paths
  assert "2 hidden" in caplog.text and "'.git'" in caplog.text
  assert "1 not .jpg" in caplog.text and "a/notes.txt" in caplog.text
  assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["heldout", "test", "val", "validation"])
def test_keeps_an_existing_split(folder, tmp_path, name):
  root = tmp_path / "split"
  for part, letters in (("train", "abc"), (name, "bc")):
    for letter in letters:
      shutil.copytree(folder / letter, root / part / letter)
  source = read(root, 0.5)
  assert source.class_names == ("a", "b", "c")
  assert len(source.splits["train"]) == 16
  labels = [label for _, label in source.splits["heldout"]]
  assert labels == [1] * 5 + [2]  # numbered as in train
  assert source.splits["heldout"][0][0].startswith(f"{name}/b/")
  assert source.split_rule == f"train/ and {name}/"


def test_recognizes_names_of_splits_in_capitals(folder, tmp_path, caplog):
  root = tmp_path / "split"
  for part in ("Training", "Testing", "unlabeled"):
    for letter in "abc":
      shutil.copytree(folder / letter, root / part / letter)
  source = read(root, 0.5)
  assert source.class_names == ("a", "b", "c")
  assert len(source.splits["heldout"]) == len(source.splits["train"]) == 16
  assert "1 neither training nor held-out images" in caplog.text
  assert "'unlabeled'" in caplog.text


def test_splits_train_without_heldout_and_classes_named_train(folder, tmp_path):
  root = tmp_path / "root"
  for letter in "ab":
    shutil.copytree(folder / letter, root / "train" / letter)
  source = read(root)
  assert source.class_names == ("a", "b")
  assert source.splits["heldout"][0][0].startswith("train/a/")
  vehicles = tmp_path / "vehicles"
  for name in ("bus", "train", "test"):
    shutil.copytree(folder / "a", vehicles / name)
  assert read(vehicles).class_names == ("bus", "test", "train")


def test_rejects_invalid_folders(folder, tmp_path):
  for directory in (None, "/nowhere"):
    with pytest.raises(UserError, match="not exist; bind DATA_DIR .* IMAGES"):
      ImageFolder(directory=directory, heldout_fraction=0.1)
  with pytest.raises(UserError, match="has 0 class folders; expected at least"):
    read(folder / "a")
  (folder / "d").mkdir()
  with pytest.raises(UserError, match="class folder '.*/d' holds no images"):
    read(folder)
  root = tmp_path / "root"
  for part, letters in (("train", "ab"), ("valid", "ac"), ("val", "a")):
    for letter in letters:
      shutil.copytree(folder / letter, root / part / letter)
  with pytest.raises(UserError, match="has 'val' and 'valid'; expected one"):
    read(root)
  shutil.rmtree(root / "val")
  with pytest.raises(UserError, match="the class 'c', but 'train' does not"):
    read(root)


@pytest.mark.parametrize(
  "parts",
  [
    ["val", "test"],
    ["training_set", "test_set"],
    ["test"],
    ["TrainSet"],
    ["seg_pred", "seg_train", "seg_test"],
    ["birds", "Flowers Validation", "Flowers Train"],
  ],
)
def test_parts_of_a_split_are_no_classes(folder, tmp_path, parts):
  for part in parts:
    shutil.copytree(folder, tmp_path / "split" / part)
  with pytest.raises(UserError, match=f"{parts[-1]}'?.* no folder 'train'"):
    read(tmp_path / "split")


@pytest.mark.parametrize("name", ["test", "freight_train"])
def test_one_class_of_folders_may_be_called_like_a_part(folder, name):
  shutil.copytree(folder / "a", folder / name / "deeper")
  assert read(folder).class_names == tuple(sorted(["a", "b", "c", name]))
  shutil.copytree(folder / "a", folder / "bullet train" / "deeper")
  assert len(read(copy(folder)).class_names) == 5


def test_test_images_are_left_alone_where_others_validate(
  folder, tmp_path, caplog
):
  root = tmp_path / "root"
  for part in ("train", "Val", "test"):
    for letter in "ab":
      shutil.copytree(folder / letter, root / part / letter)
  source = read(root)
  assert source.split_rule == "train/ and Val/"
  paths = [path for part in source.splits.values() for path, _ in part]
  assert len(paths) == 30 and not any("test" in path for path in paths)
  assert "1 neither training nor held-out images, such as 'test'" in caplog.text


def test_all_suffixes_of_jpegs_are_listed(folder):
  for index, path in enumerate(sorted((folder / "a").iterdir())[:3]):
    path.rename(path.with_suffix([".jfif", ".JPE", ".jpeg"][index]))
  paths = [path for part in read(folder).splits.values() for path, _ in part]
  assert {os.path.splitext(path)[1] for path in paths} >= {".jfif", ".JPE"}


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1])
def test_rejects_fractions_outside_of_0_to_1(fraction, folder):
  with pytest.raises(UserError, match=f"heldout_fraction = {fraction} is inv"):
    read(folder, fraction)


def test_key_changes_with_images_and_split(folder):
  key = read(folder).key
  same = copy(folder)
  assert read(same).key == key and read(same, 0.5).key != key
  longer = copy(same)
  (longer / "a" / "1.jpg").write_bytes(b"more")
  assert read(longer).key != key
  later = copy(longer)
  (later / "a" / "1.jpg").write_bytes(b"")
  os.utime(later / "a" / "1.jpg", ns=(0, 1))  # another image of that size
  assert read(later).key not in (key, read(longer).key)


def test_reads_images_unchanged(tmp_path):
  for label, name in enumerate(("cat", "dog")):
    (tmp_path / name).mkdir()
    pixels = np.full([8, 8, 3], label, np.uint8)
    (tmp_path / name / "0.png").write_bytes(tf.io.encode_png(pixels).numpy())
    (tmp_path / name / "1.JPG").write_bytes(tf.io.encode_jpeg(pixels).numpy())
  source = read(tmp_path, 0.5)
  # Workers get the source without its list.
  worker = pickle.loads(pickle.dumps(source))
  assert not worker.splits
  for reference in (*source.splits["train"], *source.splits["heldout"]):
    record = worker.read(reference)
    assert record.encoded == (tmp_path / record.filename).read_bytes()
    assert record.text == source.class_names[record.label]
    assert record.filename.startswith(record.text)
    assert record.format == ("png" if "png" in record.filename else "jpeg")


def test_lists_broken_links_and_fails_to_read_them(folder):
  (folder / "a" / "gone.png").symlink_to(folder / "nowhere")
  assert describe_file(str(folder), "a/gone.png") == "a/gone.png is missing"
  source = read(folder)
  assert "a/gone.png" in dict(
    (*source.splits["train"], *source.splits["heldout"])
  )
  with pytest.raises(tf.errors.NotFoundError):
    source.read(("a/gone.png", 0))


def test_digest_is_sha_256():
  assert digest("abc").startswith("ba7816bf8f01cfea")
