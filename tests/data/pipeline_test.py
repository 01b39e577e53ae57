import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.augmentation import Augmentation, MixUp
from nfnets_tf.data.dataset_info import INDEX, evaluation_steps
from nfnets_tf.data.pipeline import DataStream
from nfnets_tf.data.preprocessing import Flip, Resize, Shift
from nfnets_tf.errors import UserError
from tests.support.datasets import (
  make_split,
  store_with_tfds,
  training_batches,
  write_small_dataset,
)

SHIFT = [Shift(pixels=3), Resize(image_size=8)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """50 and 13 images of 8 x 8; image i has the value i and the label i % 4."""
  return write_small_dataset(str(tmp_path_factory.mktemp("pipeline") / "data"))


def augmented(directory, transforms=None, **augmentation):
  return make_split(
    directory, transforms=transforms, augmentation=Augmentation(**augmentation)
  )


def assert_same(a, b):
  assert len(a) == len(b) > 0
  for batch, other in zip(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, batch, other)


def values_of(batches, row=0, column=0):
  """Returns one pixel of each image of all batches."""
  return np.concatenate([images[:, row, column, 0] for images, *_ in batches])


def test_epoch_has_every_image_with_its_label(dataset):
  batches = training_batches(make_split(dataset), 25)  # 25 * 8 = 4 * 50
  assert np.bincount(values_of(batches)).tolist() == [4] * 50
  labels = np.concatenate([labels for _, labels, _ in batches])
  np.testing.assert_array_equal(values_of(batches) % 4, labels)


def test_resumes_at_any_step_with_the_same_order_and_draws(dataset):
  split = make_split(dataset, transforms=SHIFT)
  batches = training_batches(split, 20)
  assert_same(training_batches(split, 20), batches)
  assert_same(training_batches(split, 7, start_step=13), batches[13:])


def test_draws_differ_between_epochs_examples_and_streams(make_dataset):
  def fill(image, seed):
    value = tf.random.stateless_uniform([], seed, 0, 256, tf.int32)
    return tf.fill([8, 8, 3], tf.cast(value, tf.uint8))

  split = make_split(make_dataset(train=8, train_shards=1), transforms=[fill])
  streams = [
    values_of(training_batches(split, 4, index=index, num_streams=2))
    for index in range(2)
  ]
  assert all(len(set(values)) > 20 for values in streams)  # of 32 draws
  assert np.mean(streams[0] == streams[1]) < 0.2


def test_replicas_share_the_batch_of_a_step(dataset):
  split = make_split(dataset)
  whole = training_batches(split, 5)
  halves = training_batches(split, 10, replicas=2)
  joined = [
    tuple(np.concatenate(pair) for pair in zip(halves[i], halves[i + 1]))
    for i in range(0, 10, 2)
  ]
  assert_same(joined, whole)


@pytest.mark.parametrize("hosts, replicas", [(1, 1), (2, 2), (3, 1)])
def test_evaluation_has_each_image_once(dataset, hosts, replicas):
  split = make_split(dataset, "heldout")
  info, values = split.read_info(), []
  steps = evaluation_steps(info, 4 * hosts)
  for host in range(hosts):
    batches = split.evaluation_batches(
      info, host_batch=4, replicas=replicas, host=host, num_hosts=hosts
    )
    batches = list(batches.as_numpy_iterator())
    assert len(batches) == steps * replicas
    for images, labels, weights in batches:
      assert images.shape == (4 // replicas, 8, 8, 3)
      assert set(weights) <= {0.0, 1.0}
      real = images[weights == 1, 0, 0, 0]
      np.testing.assert_array_equal(real % 4, labels[weights == 1])
      values.extend(real)
  assert sorted(values) == list(range(13))


def test_rejects_num_classes_that_differ_from_the_index(make_dataset):
  directory = make_dataset()
  with pytest.raises(UserError, match="has 4 classes, but NUM_CLASSES = 6"):
    make_split(directory, num_classes=6).read_info()
  os.remove(os.path.join(directory, INDEX))
  assert make_split(directory, num_classes=6).read_info().num_classes == 4
  with pytest.raises(UserError, match="4 classes or more.*NUM_CLASSES = 3"):
    make_split(directory, num_classes=3).read_info()


def test_rejects_transforms_without_a_fixed_size(dataset):
  with pytest.raises(UserError, match="expected a fixed size"):
    training_batches(make_split(dataset, transforms=[Flip()]), 1)


def test_image_shape_and_home_folder():
  split = make_split("~/data")
  assert split.image_shape() == (8, 8, 3)
  assert split.directory == os.path.expanduser("~/data")


def test_repeated_augmentation_puts_copies_next_to_each_other(dataset):
  """A batch of 8 holds 2 images 4 times; the order is that of no copies."""
  split = augmented(dataset, SHIFT, multiplicity=4)
  batches = training_batches(split, 25)
  values = np.concatenate([images.max((1, 2, 3)) for images, *_ in batches])
  np.testing.assert_array_equal(values[::4], values[3::4])
  assert np.bincount(values[::4]).tolist() == [1] * 50
  plain = training_batches(make_split(dataset), 7)
  np.testing.assert_array_equal(values[::4], values_of(plain)[:50])
  labels = np.concatenate([labels for _, labels, _ in batches])
  np.testing.assert_array_equal(values % 4, labels)
  assert_same(training_batches(split, 10, start_step=15), batches[15:])
  # Every copy has its own draws.
  images = np.concatenate([images for images, *_ in batches])
  copies = images.reshape(-1, 4, *images.shape[1:])
  assert np.mean([np.array_equal(a, b) for a, b, *_ in copies]) < 0.3


def test_rejects_batches_not_divisible_by_the_multiplicity(dataset):
  with pytest.raises(UserError, match="multiplicity = 0 is invalid"):
    Augmentation(multiplicity=0)
  with pytest.raises(
    UserError, match="batch of 4 .* MULTIPLICITY = 3; .* of 6"
  ):
    training_batches(augmented(dataset, multiplicity=3), 1, replicas=2)


def left_half(first, second, seed):
  """A mixer that shows the left half of the first image."""
  del seed
  return tf.concat([first[:, :4], second[:, 4:]], axis=1), tf.constant(0.5)


def upper_quarter(first, second, seed):
  del seed
  return tf.concat([first[:2], second[2:]], axis=0), tf.constant(0.25)


MIXERS = [left_half, upper_quarter]


def test_mixing_reads_each_image_once_an_epoch(dataset):
  """Batches of 8 hold 16 of the 50 images."""
  split = augmented(dataset, batch_mixers=MIXERS)
  batches = training_batches(split, 25)
  first, second = values_of(batches), values_of(batches, 7, 7)
  for epoch in range(8):
    part = slice(epoch * 25, epoch * 25 + 25)
    read = np.concatenate([first[part], second[part]])
    assert sorted(read) == list(range(50))
  for images, labels, _ in batches:
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 4, labels.first)
    np.testing.assert_array_equal(images[:, 7, 7, 0] % 4, labels.second)
    # Mixers take turns, half of a batch each.
    np.testing.assert_array_equal(labels.fraction, [0.5, 0.25] * 4)
    of_first = images[..., 0] == images[:, :1, :1, 0]
    np.testing.assert_array_equal(of_first.mean(axis=(1, 2)), labels.fraction)
  assert_same(training_batches(split, 5, start_step=20), batches[20:])


@pytest.mark.parametrize(
  "options, count",
  [
    ({"multiplicity": 4}, 2),
    ({"batch_mixers": MIXERS, "multiplicity": 4}, 4),
  ],
)
def test_training_examples_are_those_of_the_batch(dataset, options, count):
  split = augmented(dataset, **options)
  assert split.examples_per_step(8) == count
  name = {"image/filename": tf.io.FixedLenFeature([], tf.string)}
  stream = {"index": 1, "num_streams": 2}
  examples = split.training_examples(
    split.read_info(), stream=DataStream(8, 20, 4, **stream), start_step=3
  ).take(count)
  positions, records = zip(*examples.as_numpy_iterator())
  assert positions == tuple(range(3 * count, 4 * count))
  (names,) = tf.io.parse_example(list(records), name).values()
  numbers = np.array([int(n.split(b".")[0]) for n in names.numpy()])
  batches = training_batches(split, 1, start_step=3, **stream)
  shown = [values_of(batches)]
  if "batch_mixers" in options:
    shown.append(values_of(batches, 7, 7))
    # Every stream uses all mixers.
    assert set(batches[0][1].fraction) == {0.5, 0.25}
  copies = options.get("multiplicity", 1)
  for source, values in enumerate(shown):
    expected = numbers[source :: len(shown)].repeat(copies)
    np.testing.assert_array_equal(values, expected)


def test_copies_of_a_pair_are_mixed_and_transformed_independently(dataset):
  split = augmented(
    dataset,
    batch_mixers=[MixUp(alpha=1.0)],
    post_mix_transforms=[Shift(pixels=2)],
    multiplicity=4,
  )
  for images, labels, _ in training_batches(split, 5):
    assert images.shape == (8, 8, 8, 3)
    for part in (labels.first, labels.second):
      assert (part.reshape(2, 4) == part.reshape(2, 4)[:, :1]).all()
    assert len(set(labels.fraction)) == 8
    assert len({image.tobytes() for image in images}) == 8


def test_final_transforms_come_last(dataset):
  def invert(image, seed):
    del seed
    return 255 - image

  def halve(image, seed):
    del seed
    return image // 2

  split = augmented(
    dataset, post_mix_transforms=[invert], final_transforms=[halve]
  )
  values = values_of(training_batches(split, 3))
  assert np.isin(values, (255 - np.arange(50)) // 2).all()


def test_copies_of_an_invalid_record_have_weight_0(dataset):
  def reject_7(image, seed):
    del seed
    value = image[0, 0, 0]
    tf.debugging.Assert(value != 7, [value])
    return image

  transforms = [reject_7, Resize(image_size=8)]
  split = augmented(dataset, transforms, multiplicity=2)
  batches = training_batches(split, 25)
  weights = np.concatenate([weights for _, _, weights in batches])
  assert (weights == 0).sum() == 4  # one of 50, two copies, two epochs


def test_skips_images_above_max_pixels(dataset):
  split = make_split(dataset, max_pixels=15)
  ((_, _, weights),) = training_batches(split, 1)
  assert not weights.any()
  assert list(split.invalid_records.collect()) == ["image too large"]


def test_invalid_records_at_the_same_place_of_two_hosts_are_two(dataset):
  def reject_3_and_11(image, seed):
    del seed
    tf.debugging.Assert(image[0, 0, 0] % 8 != 3, [image[0, 0, 0]])
    return image

  transforms = [reject_3_and_11, Resize(image_size=8)]
  split = make_split(dataset, "heldout", transforms)
  info = split.read_info()

  def read(**part):
    list(split.evaluation_batches(info, replicas=1, **part))
    return split.invalid_records.collect()

  for _ in range(2):  # evaluations
    read(host_batch=4, host=0, num_hosts=2)
    counts = read(host_batch=4, host=1, num_hosts=2)
    assert counts == {"rejected by a transform": 2}
  # As a report does, on one host.
  assert read(host_batch=8) == {"rejected by a transform": 2}


def test_validates_records_by_the_fields_of_the_shards(tmp_path):
  split = make_split(store_with_tfds(tmp_path), num_classes=2)
  fields = split.read_info().fields
  assert split.invalid_records.validate.fields == fields
  assert fields.label == "kind"
