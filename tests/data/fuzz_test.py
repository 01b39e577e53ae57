"""Damaged records by the thousand: no crash, no hang, no wrong label."""

import collections
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nfnets_tf.data import decoding, pipeline, preprocessing
from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.data.tfrecords import Fields, Record, write_shard
from nfnets_tf.data.validation import RecordValidator

SHARDS, BATCH = 4, 100
CLASSES = 1000
PIXELS = np.random.default_rng(0).integers(0, 256, [24, 20, 3], np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded_by_pillow(image, kind, **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def originals():
  """Returns images of every supported kind."""
  deep = PIXELS.astype(np.uint16) * 257
  frames = [Image.fromarray(np.roll(PIXELS, i, 0)) for i in range(3)]
  return {
    "jpeg": encoded_by_pillow(PICTURE, "JPEG"),
    "progressive jpeg": encoded_by_pillow(PICTURE, "JPEG", progressive=True),
    "gray jpeg": encoded_by_pillow(PICTURE.convert("L"), "JPEG"),
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
  """Gives a feature another type, two values, or none."""
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
  return example.SerializeToString(deterministic=True)


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


def stated_labels(records):
  """Returns the label that each record states, by protobuf alone."""
  labels = []
  for record in records:
    try:
      features = tf.train.Example.FromString(record).features.feature
      (label,) = features[Fields().label].int64_list.value
    except Exception:  # any exception of protobuf on damaged bytes
      label = None
    labels.append(label)
  return labels


@pytest.fixture(
  scope="module", params=[2_000, pytest.param(10_000, marks=pytest.mark.soak)]
)
def shards(request, tmp_path_factory):
  """Records, most of them damaged, in their order; returns folder, records."""
  directory = tmp_path_factory.mktemp("fuzz")
  records = list(damaged(request.param, np.random.default_rng(1)))
  size = len(records) // SHARDS
  for shard in range(SHARDS):
    path = directory / f"train-{shard:05d}-of-{SHARDS:05d}"
    part = records[shard * size : (shard + 1) * size]
    write_shard(str(path), [(0, record) for record in part])
  return str(directory), records


def open_split(directory, count):
  """Returns a split and its info."""
  split = pipeline.Split(
    directory=directory,
    split="train",
    num_classes=CLASSES,
    # No crop: with one, damage outside of it would not be seen.
    transforms=[preprocessing.Resize(image_size=8)],
  )
  files = tuple(sorted(tf.io.gfile.glob(f"{directory}/train-*")))
  info = SplitInfo(files, (count // SHARDS,) * SHARDS, CLASSES, ())
  return split, info


def test_damaged_records_lose_only_themselves(shards):
  directory, records = shards
  count = len(records)
  split, info = open_split(directory, count)
  batches = split.evaluation_batches(info, host_batch=BATCH, replicas=1)
  labels, weights = [], []
  for _, batch_labels, batch_weights in batches.as_numpy_iterator():
    labels.extend(batch_labels)
    weights.extend(batch_weights)
  assert len(labels) == count
  stated = stated_labels(records)
  for number, (label, weight) in enumerate(zip(labels, weights)):
    # Python's protobuf rejects names that are not UTF-8; TensorFlow does not.
    unknown = stated[number] is None
    expected = number % CLASSES if unknown else stated[number]
    assert weight == 0 or label == expected
  valid = np.array(weights, bool)
  assert valid[9::10].all()  # the undamaged ones
  skipped = count - int(valid.sum())
  counts = split.invalid_records.collect()
  assert skipped == sum(counts.values()) > 0.3 * count
  assert "rejected by a transform" not in counts
  validate = RecordValidator(Fields(), CLASSES)
  reasons = [validate(record) for record in records[:2000]]
  assert {reason.cause for reason in reasons if reason} >= {
    "image not decodable",
    "image too large",
    "label out of range",
    "not a tf.train.Example",
    "not exactly one image",
    "not exactly one label",
  }
  # The validator and the pipeline agree, except on what protobuf rejects.
  for reason, used, label in zip(reasons, valid, stated):
    assert (reason is None) == used or label is None


def test_training_resumes_among_damaged_records(shards):
  directory, records = shards
  split, info = open_split(directory, len(records))
  stream = pipeline.DataStream(batch_size=64, shuffle_buffer=1200, seed=0)

  def batches(start_step, count):
    batches = split.training_batches(
      info, stream=stream, start_step=start_step, replicas=1
    )
    return list(batches.take(count).as_numpy_iterator())

  whole, rest = batches(0, 12), batches(9, 3)
  for batch, other in zip(whole[9:], rest):
    for part, other_part in zip(batch, other):
      np.testing.assert_array_equal(part, other_part)
  assert {batch[0].shape for batch in whole} == {(64, 8, 8, 3)}


@pytest.mark.parametrize("kind", list(originals()))
def test_decodes_every_kind_of_image(kind):
  image = decoding.decode(tf.constant(originals()[kind]))
  assert image.dtype == tf.uint8 and image.shape == [24, 20, 3]
  near = kind in ("png", "png of 16 bits", "png with alpha", "bmp")
  if near:
    np.testing.assert_array_equal(image, PIXELS)
  counted = collections.Counter(image.numpy().ravel().tolist())
  assert len(counted) > 5  # not a blank
