import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets_tf.data import index, records
from nfnets_tf.ops.errors import UserError


def remove_index(directory):
  os.remove(os.path.join(directory, records.INDEX))


def test_index_counts_what_the_shards_hold(make_dataset):
  found = index.read_index(make_dataset(train=50, train_shards=4), "train")
  assert found.counts == (13, 13, 12, 12)
  assert found.num_examples == 50 and found.num_classes == 4
  assert found.class_names == ("a", "b", "c", "d")
  for path, count in zip(found.files, found.counts):
    assert sum(1 for _ in tf.data.TFRecordDataset(path)) == count


def test_shards_without_an_index_are_scanned(make_dataset):
  directory = make_dataset()
  indexed = index.read_index(directory, "train")
  remove_index(directory)
  scanned = index.read_index(directory, "train")
  assert (scanned.files, scanned.counts) == (indexed.files, indexed.counts)
  assert scanned.num_classes == 4 and scanned.class_names == ()


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


@pytest.mark.parametrize("label", [None, -5])
def test_a_shard_without_labels_is_named(make_dataset, label):
  directory = make_dataset(train=3, train_shards=1)
  shard = index.read_index(directory, "train").files[0]
  remove_index(directory)
  features = {}
  if label is not None:
    values = tf.train.Int64List(value=[label])
    features[records.Fields().label] = tf.train.Feature(int64_list=values)
  example = tf.train.Example(features=tf.train.Features(feature=features))
  with tf.io.TFRecordWriter(shard) as writer:
    writer.write(records.Record(b"", 0, "", "", "").serialize())
    writer.write(example.SerializeToString())
  with pytest.raises(UserError, match="record 1 of the shard .*has no label"):
    index.read_index(directory, "train")


def test_file_names_come_in_the_order_of_the_records(make_dataset):
  found = index.read_index(make_dataset(train=7, train_shards=2), "train")
  names = index.read_filenames(found)
  assert names == [f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5)]


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


def test_shards_are_counted_once_and_anew_when_they_change(
  make_dataset, monkeypatch
):
  directory = make_dataset(train=4, train_shards=2)
  remove_index(directory)
  first = index.read_index(directory, "train")
  with monkeypatch.context() as patch:
    patch.setattr(index, "_labels", None)
    assert index.read_index(directory, "train") == first
  record = records.Record(b"", 6, "", "", "")
  records.write_shard(first.files[0], [(6, record.serialize())])
  changed = index.read_index(directory, "train")
  assert changed.counts == (1, 2) and changed.num_classes == 7


def test_model_garden_shards_count_classes_from_1(make_dataset):
  directory = make_dataset(train=8, train_shards=1)
  remove_index(directory)
  shifted = records.Fields(first_label=1)
  with pytest.raises(UserError, match="no label of 1 or more"):
    index.read_index(directory, "train", shifted)
  path = os.path.join(directory, "train-00000-of-00001.tfrecord")
  shards = [records.Record(b"", label, "", "", "") for label in (1, 4)]
  records.write_shard(path, [(0, record.serialize()) for record in shards])
  found = index.read_index(directory, "train", shifted)
  assert found.num_classes == 4 and found.fields == shifted


def store_with_tfds(directory, **features):
  """Writes six images of two classes as TFDS does; returns its folder."""
  images = np.stack([np.full([8, 8, 3], i, np.uint8) for i in range(6)])
  examples = tf.data.Dataset.from_tensor_slices(
    {
      "picture": images,
      "kind": np.arange(6) % 2,
      "file_name": [f"{i}.png" for i in range(6)],
      **{name: np.arange(6) % 2 for name in features},
    }
  )
  builder = tfds.dataset_builders.store_as_tfds_dataset(
    name="tiny",
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {
        "picture": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
        "file_name": tfds.features.Text(),
        **features,
      }
    ),
    split_datasets={"train": examples},
    data_dir=str(directory),
  )
  return str(builder.data_path)


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
