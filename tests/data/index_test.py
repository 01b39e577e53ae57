import json
import os

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets_tf.data import index, records
from nfnets_tf.errors import UserError
from tests.support.datasets import remove_index, store_with_tfds


def test_index_counts_what_the_shards_hold(make_dataset):
  found = index.read_index(make_dataset(train=50, train_shards=4), "train")
  assert found.counts == (13, 13, 12, 12)
  assert found.num_examples == 50 and found.num_classes == 4
  assert found.class_names == ("a", "b", "c", "d")
  for path, count in zip(found.files, found.counts):
    assert sum(1 for _ in tf.data.TFRecordDataset(path)) == count


@pytest.mark.parametrize(
  "counts, batch_size, expected",
  [((13,), 13, 1), ((7, 6), 12, 2), ((7, 6), 14, 1), ((12, 12), 8, 3)],
)
def test_an_evaluation_has_as_many_batches_as_hold_all(
  counts, batch_size, expected
):
  found = index.SplitIndex(("x",) * len(counts), counts, 4, ())
  assert index.evaluation_steps(found, batch_size) == expected


def test_missing_and_empty_folders_are_told_apart(tmp_path, make_dataset):
  with pytest.raises(UserError, match="does not exist; bind DATA_DIR"):
    index.read_index(str(tmp_path / "nowhere"), "train")
  with pytest.raises(UserError, match=r"no train-\* shards \(it is empty\)"):
    index.read_index(str(tmp_path), "train")
  with pytest.raises(UserError, match="no split 'valid'.*'train', 'heldout'"):
    index.read_index(make_dataset(), "valid")
  with pytest.raises(UserError, match="holds no examples"):
    index.read_index(make_dataset(heldout=0, name="none"), "heldout")


def test_lost_and_cut_shards_are_named(make_dataset):
  directory = make_dataset()
  shard = index.read_index(directory, "train").files[1]
  size = os.path.getsize(shard)
  os.truncate(shard, size - 7)
  with pytest.raises(UserError, match=f"train-00001.* has {size - 7:,} bytes"):
    index.read_index(directory, "train")
  remove_index(directory)
  with pytest.raises(UserError, match="train-00001.* is not a whole TFRecord"):
    index.read_index(directory, "train")
  os.remove(shard)


def test_a_missing_shard_of_the_index_is_named(make_dataset):
  directory = make_dataset()
  os.remove(index.read_index(directory, "train").files[2])
  with pytest.raises(UserError, match="train-00002.* is missing"):
    index.read_index(directory, "train")


def test_file_names_come_in_the_order_of_the_records(make_dataset):
  found = index.read_index(make_dataset(train=7, train_shards=2), "train")
  names = index.read_filenames(found)
  assert names == [f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5)]


def test_an_index_that_is_none(make_dataset):
  directory = make_dataset()
  path = os.path.join(directory, records.INDEX)
  for text, message in (
    ('{"splits": {', "no JSON file"),
    ('{"splits": {}}', "lacks class_names; expected the index"),
  ):
    with open(path, "w") as file:
      file.write(text)
    with pytest.raises(UserError, match=message):
      index.read_index(directory, "train")


def test_numbers_for_a_configuration(make_dataset):
  given = {"directory": make_dataset(train=7), "split": "train"}
  assert index.count_classes(**given) == 4
  assert index.count_examples(**given) == 7
  with pytest.raises(UserError, match="DATA_DIR is not given; bind it"):
    index.count_examples(directory=None, split="train")


def test_file_names_in_any_code(make_dataset):
  directory = make_dataset(train=1, train_shards=1)
  found = index.read_index(directory, "train")
  example = tf.train.Example()
  name = example.features.feature["image/filename"].bytes_list
  name.value.append(b"caf\xe9.png")
  records.write_shard(found.files[0], [(0, example.SerializeToString())])
  assert index.read_filenames(found) == ["caf\ufffd.png"]


def test_an_older_index_is_read(make_dataset):
  directory = make_dataset()
  now = index.read_index(directory, "train")
  path = os.path.join(directory, records.INDEX)
  with open(path) as file:
    content = json.load(file)
  content["format"] = 1
  for name, split in content["splits"].items():
    content["splits"][name] = split["shards"]
  with open(path, "w") as file:
    json.dump(content, file)
  assert index.read_index(directory, "train") == now
  assert len(now.sums) == 5


def test_files_of_tfds_are_read_as_they_are(tmp_path):
  directory = store_with_tfds(tmp_path)
  found = index.read_index(directory, "train")
  assert found.num_examples == 6 and found.class_names == ("cat", "dog")
  assert found.fields.image == "picture" and found.fields.label == "kind"
  assert set(index.read_filenames(found)) == {f"{i}.png" for i in range(6)}
  with pytest.raises(
    UserError, match="no split 'test'; its index lists 'train'"
  ):
    index.read_index(directory, "test")


def test_tfds_with_several_labels_is_asked_which(tmp_path):
  kind = tfds.features.ClassLabel(names=["x", "y", "z"])
  directory = store_with_tfds(tmp_path, other=kind)
  with pytest.raises(UserError, match=r"labels \['kind', 'other'\]; expected"):
    index.read_index(directory, "train")
  chosen = records.Fields("picture", "other")
  found = index.read_index(directory, "train", chosen)
  assert found.class_names == ("x", "y", "z") and found.fields == chosen
