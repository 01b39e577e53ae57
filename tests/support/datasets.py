"""Small datasets, records and images."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.data.dataset_info import INDEX, describe_split, write_index
from nfnets_tf.data.example_sources import Digits
from nfnets_tf.data.shard_builder import ShardBuilder
from nfnets_tf.data.shard_tasks import InProcess
from nfnets_tf.data.tfrecords import Record, shard_name, write_shard

SMALL_IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def png_record(label: int, position: int, size: int = 8) -> Record:
  """Returns a gray PNG whose pixels state its position, modulo 251."""
  image = np.full([size, size, 3], position % 251, np.uint8)
  return Record(
    encoded=tf.io.encode_png(image).numpy(),
    label=label,
    text=f"class {label}",
    filename=f"{position}.png",
    format="png",
  )


def write_dataset(directory, splits, *, num_shards, class_names) -> None:
  """Writes shards and their index.

  Args:
    directory: of the shards.
    splits: {split: its records}, which are dealt to its shards in turn.
    num_shards: {split: number of its shards}.
    class_names: name of every class.
  """
  pathlib.Path(directory).mkdir(parents=True)
  index = {"format": 2, "class_names": list(class_names), "splits": {}}
  for split, records in splits.items():
    count = num_shards[split]
    entries = [
      write_shard(
        str(pathlib.Path(directory, shard_name(split, shard, count))),
        [(x.label, x.serialize()) for x in records[shard::count]],
      )
      for shard in range(count)
    ]
    index["splits"][split] = describe_split(entries, len(class_names))
  write_index(str(directory), index)


def write_small_dataset(
  directory: str, train: int = 50, heldout: int = 13, train_shards: int = 5
) -> str:
  """Writes images of 4 classes in turn; returns the directory."""
  write_dataset(
    directory,
    {
      "train": [png_record(i % 4, i) for i in range(train)],
      "heldout": [png_record(i % 4, i) for i in range(heldout)],
    },
    num_shards={"train": train_shards, "heldout": 2},
    class_names=["a", "b", "c", "d"],
  )
  return directory


def remove_index(directory) -> None:
  """Removes what `write_dataset` states about its shards."""
  pathlib.Path(directory, INDEX).unlink()


def make_split(
  directory, split="train", transforms=None, num_classes=4, **options
) -> pipeline.Split:
  """Returns a split of 8 x 8 images."""
  transforms = transforms or [preprocessing.Resize(image_size=8)]
  return pipeline.Split(
    directory=directory,
    split=split,
    num_classes=num_classes,
    transforms=transforms,
    **options,
  )


def training_batches(
  split: pipeline.Split,
  count: int,
  *,
  start_step: int = 0,
  replicas: int = 1,
  **stream,
) -> list:
  """Returns the first batches of a stream, by default of 8 examples each."""
  stream = {"batch_size": 8, "shuffle_buffer": 20, "seed": 4, **stream}
  batches = split.training_batches(
    split.read_info(),
    stream=pipeline.DataStream(**stream),
    start_step=start_step,
    replicas=replicas,
  )
  return list(batches.take(count).as_numpy_iterator())


def serialized_example(**features) -> bytes:
  """Returns a tf.train.Example of integers and bytes."""
  kinds = {int: "int64_list", bytes: "bytes_list"}
  lists = {int: tf.train.Int64List, bytes: tf.train.BytesList}
  features = {
    name: tf.train.Feature(**{kinds[type(v)]: lists[type(v)](value=[v])})
    for name, v in features.items()
  }
  features = tf.train.Features(feature=features)
  return tf.train.Example(features=features).SerializeToString(
    deterministic=True
  )


def store_with_tfds(directory, **features) -> str:
  """Writes six images of two classes as TFDS does; returns their folder."""
  import tensorflow_datasets as tfds  # takes seconds

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


def smooth_image(seed: int, size: int = 96) -> tf.Tensor:
  """Returns a smooth random image, uint8 [size, size, 3]."""
  coarse = np.random.default_rng(seed).uniform(0, 255, [6, 6, 3])
  image = tf.image.resize(coarse, [size, size], method="bicubic")
  return tf.saturate_cast(image, tf.uint8)


@dataclasses.dataclass
class SmoothImages:
  """A source of examples: smooth images, 13 unreadable and 17 truncated."""

  count: int = 23
  first: int = 0
  quality: int = 95
  key: str = "pictures"
  split_rule: str = "one in four"
  class_names: tuple = ("a", "b", "c")

  @property
  def splits(self):
    """Maps train and heldout to references: a seed and a class."""
    references = [(self.first + i, i % 3) for i in range(self.count)]
    return {"train": references[1:], "heldout": references[:1]}

  def read(self, reference) -> Record:
    """Returns the record of a reference."""
    seed, label = reference
    if seed == 13:
      raise OSError("this one cannot be read")
    encoded = tf.io.encode_jpeg(
      smooth_image(seed, 32), quality=self.quality
    ).numpy()
    if seed == 17:
      encoded = encoded[:60]
    return Record(
      encoded, label, self.class_names[label], f"{seed}.jpg", "jpeg"
    )


def make_builder(directory, source=None, **options) -> ShardBuilder:
  """Returns a builder of shards of 5 examples, by default `SmoothImages`."""
  defaults = {
    "examples_per_shard": 5,
    "seed": 0,
    "exclude": None,
    "max_hash_distance": 3,
    "max_invalid_fraction": 0.1,
    "runner": InProcess(),
  }
  source = source or SmoothImages()
  return ShardBuilder(
    source=source, directory=str(directory), **{**defaults, **options}
  )


def write_digits(directory, image_size: int = 32) -> str:
  """Writes the digits as gin/data/digits.gin does; returns the directory."""
  options = {"examples_per_shard": 180, "seed": None}
  make_builder(directory, Digits(image_size=image_size), **options).build()
  return str(directory)


def names_in(path) -> list[str]:
  """Returns the file names that a shard's records state."""
  return [
    tf.train.Example.FromString(serialized)
    .features.feature["image/filename"]
    .bytes_list.value[0]
    .decode()
    for serialized in tf.data.TFRecordDataset(path).as_numpy_iterator()
  ]
