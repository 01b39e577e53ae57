import shutil

import pytest

from nfnets_tf.data.listing import (
  Listing,
  check_share,
  count_classes,
  count_training_images,
  describe_file,
  digest,
  is_held_out,
  list_folder,
)
from nfnets_tf.errors import UserError


@pytest.fixture(autouse=True)
def forget():
  list_folder.cache_clear()


@pytest.fixture
def folder(tmp_path):
  """Three classes of 10, 5 and 1 images."""
  for name, count in (("a", 10), ("b", 5), ("c", 1)):
    (tmp_path / name).mkdir()
    for i in range(count):
      (tmp_path / name / f"{i}.jpg").touch()
  return tmp_path


def test_finds_the_classes_and_splits_each(folder):
  listing = list_folder(str(folder), 0.2)
  assert isinstance(listing, Listing) and listing.class_names == tuple("abc")
  train, heldout = listing.splits["train"], listing.splits["heldout"]
  assert [label for _, label in heldout] == [0, 0, 1]  # never the only one
  assert [label for _, label in train] == [0] * 8 + [1] * 4 + [2]
  paths = [path for path, _ in (*train, *heldout)]
  assert len(set(paths)) == 16
  assert all(path[0] == "abc"[label] for path, label in (*train, *heldout))
  options = {"directory": str(folder), "heldout_share": 0.2}
  assert count_classes(**options) == 3
  assert count_training_images(**options) == 13


def test_the_split_follows_from_the_names_alone(folder, tmp_path):
  first = list_folder(str(folder), 0.3).splits
  assert "0.3 of every class" in list_folder(str(folder), 0.3).rule
  moved = tmp_path / "moved"
  moved.mkdir()
  for name in "abc":
    shutil.copytree(folder / name, moved / name)
  assert list_folder(str(moved), 0.3).splits == first
  # One image more moves one image at most across the line of its class.
  (moved / "a" / "more.jpg").touch()
  list_folder.cache_clear()
  again = set(list_folder(str(moved), 0.3).splits["heldout"])
  assert len(again - set(first["heldout"])) <= 1


def test_the_held_out_images_are_spread_over_the_names(tmp_path):
  """The first ones may be one day's photographs."""
  for name in "ab":
    (tmp_path / name).mkdir()
    for i in range(100):
      (tmp_path / name / f"{i:03}.jpg").touch()
  heldout = list_folder(str(tmp_path), 0.1).splits["heldout"]
  numbers = [int(path[2:5]) for path, label in heldout if label == 0]
  assert len(numbers) == 10 and 30 < sum(numbers) / 10 < 70
  assert max(numbers) - min(numbers) > 50


def test_other_files_and_deeper_folders(folder, caplog):
  (folder / "a" / "notes.txt").touch()
  (folder / "a" / ".hidden").touch()
  (folder / ".git").mkdir()
  (folder / "b" / "deep").mkdir()
  (folder / "b" / "deep" / "x.PNG").touch()
  listing = list_folder(str(folder), 0.2)
  paths = [p for part in listing.splits.values() for p, _ in part]
  assert len(paths) == 17 and "b/deep/x.PNG" in paths
  assert "Left out 1 files" in caplog.text and "a/notes.txt" in caplog.text


@pytest.mark.parametrize("name", ["heldout", "test", "val", "validation"])
def test_a_split_that_is_there_is_kept(folder, tmp_path, name):
  root = tmp_path / "split"
  for part, letters in (("train", "abc"), (name, "bc")):
    for letter in letters:
      shutil.copytree(folder / letter, root / part / letter)
  listing = list_folder(str(root), 0.5)
  assert listing.class_names == ("a", "b", "c")
  assert len(listing.splits["train"]) == 16
  labels = [label for _, label in listing.splits["heldout"]]
  assert labels == [1] * 5 + [2]  # of train's numbering
  assert listing.splits["heldout"][0][0].startswith(f"{name}/b/")
  assert listing.rule == f"train/ and {name}/"


def test_names_of_splits_in_capitals_and_folders_of_neither(
  folder, tmp_path, caplog
):
  root = tmp_path / "split"
  for part in ("Training", "Testing", "unlabelled"):
    for letter in "abc":
      shutil.copytree(folder / letter, root / part / letter)
  listing = list_folder(str(root), 0.5)
  assert listing.class_names == ("a", "b", "c")
  assert len(listing.splits["heldout"]) == len(listing.splits["train"]) == 16
  assert "unlabelled, which is neither" in caplog.text
  (root / "Training").rename(root / "train")
  shutil.copytree(root / "train" / "a", root / "dev" / "a")
  list_folder.cache_clear()
  with pytest.raises(UserError, match="'Testing' and 'dev', of which one"):
    list_folder(str(root), 0.5)


def test_train_alone_is_split_and_a_class_may_be_called_train(folder, tmp_path):
  root = tmp_path / "root"
  for letter in "ab":
    shutil.copytree(folder / letter, root / "train" / letter)
  listing = list_folder(str(root), 0.2)
  assert listing.class_names == ("a", "b")
  assert listing.splits["heldout"][0][0].startswith("train/a/")
  vehicles = tmp_path / "vehicles"
  for name in ("bus", "train", "test"):
    shutil.copytree(folder / "a", vehicles / name)
  assert list_folder(str(vehicles), 0.2).class_names == ("bus", "test", "train")


def test_folders_that_cannot_be_used(folder, tmp_path):
  def refused(directory, complaint, share=0.1):
    list_folder.cache_clear()
    with pytest.raises(UserError, match=complaint):
      list_folder(directory and str(directory), share)

  refused(None, "DATA_DIR is not given")
  refused("/nowhere", "'/nowhere' does not exist")
  refused(folder, "HELDOUT_SHARE = 1.0", share=1.0)
  refused(folder, "HELDOUT_SHARE = 0", share=0)
  refused(folder / "a", "has 0 class folders; expected at least 2")
  (folder / "d").mkdir()
  refused(folder, "class folder '.*/d' holds no images .*jpg")
  root = tmp_path / "root"
  for part, letters in (("train", "ab"), ("test", "ac"), ("val", "a")):
    for letter in letters:
      shutil.copytree(folder / letter, root / part / letter)
  refused(root, "has 'test' and 'val', of which one")
  shutil.rmtree(root / "val")
  refused(root, "has the class 'c', which 'train' has not")


def test_digest_is_sha_256():
  assert digest("abc").startswith("ba7816bf8f01cfea")


def test_a_share_of_names_is_held_out_for_good():
  names = [f"{i}.jpg" for i in range(10_000)]
  for share in (0.0, 0.1, 0.5, 1.0):
    held = [name for name in names if is_held_out(name, share)]
    assert len(held) == pytest.approx(share * len(names), abs=200)
  smaller = {name for name in names if is_held_out(name, 0.1)}
  assert smaller <= {name for name in names if is_held_out(name, 0.2)}


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1])
def test_a_share_that_leaves_nothing_to_one_side(share):
  with pytest.raises(UserError, match=f"HELDOUT_SHARE = {share} cannot"):
    check_share(share)
  check_share(0.999)


def test_a_link_to_nowhere_is_listed_and_told_when_it_is_read(folder):
  (folder / "a" / "gone.png").symlink_to(folder / "nowhere")
  assert describe_file(str(folder), "a/gone.png") == "a/gone.png is missing"
  listing = list_folder(str(folder), 0.2)
  paths = [path for part in listing.splits.values() for path, _ in part]
  assert "a/gone.png" in paths
