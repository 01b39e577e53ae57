"""Damaged records by the thousand: no crash, no hang, no wrong label."""

import collections
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.data.faults import Examiner
from nfnets_tf.data.tfrecords import Fields, Record, write_shard

COUNT, SHARDS, BATCH = 10_000, 4, 100
CLASSES = 1000
PIXELS = np.random.default_rng(0).integers(0, 256, [24, 20, 3], np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded_by_pillow(image, kind, **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def originals():
  """Returns images of every kind that there is."""
  deep = PIXELS.astype(np.uint16) * 257
  frames = [Image.fromarray(np.roll(PIXELS, i, 0)) for i in range(3)]
  return {
    "jpeg": encoded_by_pillow(PICTURE, "JPEG"),
    "progressive jpeg": encoded_by_pillow(PICTURE, "JPEG", progressive=True),
    "grey jpeg": encoded_by_pillow(PICTURE.convert("L"), "JPEG"),
    "cmyk jpeg": encoded_by_pillow(PICTURE.convert("CMYK"), "JPEG"),
    "png": encoded_by_pillow(PICTURE, "PNG"),
    "png of 16 bits": tf.io.encode_png(deep).numpy(),
    "png with alpha": encoded_by_pillow(PICTURE.convert("RGBA"), "PNG"),
    "png with a palette": encoded_by_pillow(PICTURE.convert("P"), "PNG"),
    "animated gif": encoded_by_pillow(
      frames[0], "GIF", save_all=True, append_images=frames[1:]
    ),
    "bmp": encoded_by_pillow(PICTURE, "BMP"),
  }


def flip_bits(content, random):
  content = bytearray(content)
  for _ in range(random.integers(1, 9)):
    place = random.integers(8 * len(content))
    content[place // 8] ^= 1 << int(place % 8)
  return bytes(content)


def cut(content, random):
  return content[: random.integers(len(content))]


def overwrite_sizes(content, random):
  """Puts a large number somewhere into the header."""
  place = int(random.integers(min(len(content), 200)))
  number = int(random.choice([0, 0x7FFFFFFF, 0xFFFF, 0x10000]))
  return content[:place] + number.to_bytes(4, "big") + content[place + 4 :]


def splice(content, random):
  place = random.integers(len(content))
  return content[:place] + content[random.integers(len(content)) :]


def wrong_type(record, random):
  """Has a feature of another type, twice, or not at all."""
  example = tf.train.Example.FromString(record)
  name = random.choice([Fields().image, Fields().label])
  feature = example.features.feature[name]
  feature.Clear()
  change = random.integers(4)
  if change == 0:
    feature.float_list.value.append(1.0)
  elif change == 1 and name == Fields().label:
    feature.int64_list.value.extend([1, 2])
  elif change == 2 and name == Fields().label:
    feature.int64_list.value.append(int(random.choice([-1, CLASSES, 2**62])))
  return example.SerializeToString()


def damaged(count, random):
  """Yields serialized records, nine out of ten damaged."""
  images = list(originals().values())
  of_images = (flip_bits, cut, overwrite_sizes, splice)
  of_records = (flip_bits, cut, wrong_type)
  for number in range(count):
    image = images[number % len(images)]
    if number % 10 < 6:
      image = of_images[random.integers(4)](image, random)
    record = Record(image, number % CLASSES, "", f"{number}", "").serialize()
    if 6 <= number % 10 < 9:
      record = of_records[random.integers(3)](record, random)
    yield record


def labels_of(records):
  """What each record says of its label, by protobuf alone."""
  labels = []
  for record in records:
    try:
      features = tf.train.Example.FromString(record).features.feature
      (label,) = features[Fields().label].int64_list.value
    except Exception:  # whatever protobuf raises on damaged bytes
      label = None
    labels.append(label)
  return labels


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """10,000 records, most of them damaged, in their order."""
  directory = tmp_path_factory.mktemp("fuzz")
  records = list(damaged(COUNT, np.random.default_rng(1)))
  size = COUNT // SHARDS
  for shard in range(SHARDS):
    path = directory / f"train-{shard:05d}-of-{SHARDS:05d}"
    part = records[shard * size : (shard + 1) * size]
    write_shard(str(path), [(0, record) for record in part])
  return str(directory), records


def split_of(directory):
  # No crop: with one, damage outside of it would not be seen.
  return pipeline.Split(
    directory=directory,
    split="train",
    num_classes=CLASSES,
    operations=[preprocess.Resize(image_size=8)],
  )


def index_of(directory):
  files = tf.io.gfile.glob(f"{directory}/train-*")
  counts = (COUNT // SHARDS,) * SHARDS
  return pipeline.SplitInfo(tuple(sorted(files)), counts, CLASSES, ())


def test_damaged_records_lose_only_themselves(shards):
  directory, records = shards
  split = split_of(directory)
  batches = split.evaluation_batches(
    index_of(directory), host_batch=BATCH, replicas=1
  )
  labels, weights = [], []
  for _, some_labels, some_weights in batches.as_numpy_iterator():
    labels.extend(some_labels)
    weights.extend(some_weights)
  assert len(labels) == COUNT
  owns = labels_of(records)
  for number, (own, label, weight) in enumerate(zip(owns, labels, weights)):
    # Python's protobuf refuses names that are no UTF-8; TensorFlow does not.
    assert weight == 0 or label == (number % CLASSES if own is None else own)
  good = np.array(weights, bool)
  assert good[9::10].all()  # those that nobody damaged
  lost = COUNT - int(good.sum())
  assert lost == sum(split.faults.collect().values()) > 0.3 * COUNT
  assert "refused by an operation" not in split.faults.collect()
  causes = {
    "image not decodable",
    "image too large",
    "label out of range",
    "no tf.train.Example",
    "without one image",
    "without one label",
  }
  examine = Examiner(Fields(), CLASSES)
  judged = map(examine, records[:2000])
  assert {fault.cause for fault in judged if fault} >= causes


def test_the_examiner_and_the_pipeline_agree(shards):
  directory, records = shards
  records = records[:1000]
  examine = Examiner(Fields(), CLASSES)
  judged = [examine(record) is None for record in records]
  split = split_of(directory)
  batches = split.evaluation_batches(
    index_of(directory), host_batch=BATCH, replicas=1
  ).take(10)
  weights = np.concatenate([w for _, _, w in batches.as_numpy_iterator()])
  assert judged == weights.astype(bool).tolist()


def test_training_goes_on_as_if_nothing_were(shards):
  directory, _ = shards
  split = split_of(directory)
  options = dict(host_batch=64, replicas=1, shuffle_buffer=3000, seed=0)

  def batches(start, count):
    found = split.training_batches(
      index_of(directory), start_step=start, **options
    )
    return list(found.take(count).as_numpy_iterator())

  whole, rest = batches(0, 12), batches(9, 3)
  for batch, other in zip(whole[9:], rest):
    for part, other_part in zip(batch, other):
      np.testing.assert_array_equal(part, other_part)
  assert {batch[0].shape for batch in whole} == {(64, 8, 8, 3)}


@pytest.mark.parametrize("kind", list(originals()))
def test_every_kind_of_image_is_read(kind):
  image = preprocess.decode(tf.constant(originals()[kind]))
  assert image.dtype == tf.uint8 and image.shape == [24, 20, 3]
  near = kind in ("png", "png of 16 bits", "png with alpha", "bmp")
  if near:
    np.testing.assert_array_equal(image, PIXELS)
  counted = collections.Counter(image.numpy().ravel().tolist())
  assert len(counted) > 5  # not a blank
