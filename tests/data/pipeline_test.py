import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import mixing, preprocess
from nfnets_tf.data.dataset_info import INDEX, evaluation_steps
from nfnets_tf.errors import UserError
from tests.support.datasets import make_split as make
from tests.support.datasets import store_with_tfds
from tests.support.datasets import training_batches as training


def assert_same(a, b):
  assert len(a) == len(b) > 0
  for batch, other in zip(a, b):
    for part, other_part in zip(batch, other):
      np.testing.assert_array_equal(part, other_part)


def test_labels_stay_with_their_images(make_dataset):
  for images, labels, _ in training(make(make_dataset()), 20):
    # Image i is filled with the value i, and its label is i % 4.
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 4, labels)


def test_step_n_is_the_same_after_a_restart_also_in_what_is_drawn(
  make_dataset,
):
  operations = [preprocess.Shift(pixels=3), preprocess.Resize(image_size=8)]
  split = make(make_dataset(), operations=operations)
  everything = training(split, 20)
  assert_same(training(split, 20), everything)
  assert_same(training(split, 7, start_step=13), everything[13:])


def test_a_batch_that_does_not_divide_the_epoch_loses_nothing(make_dataset):
  batches = training(make(make_dataset(train=50)), 25)  # 25 * 8 = 4 * 50
  values = np.concatenate([images[:, 0, 0, 0] for images, _, _ in batches])
  assert np.bincount(values).tolist() == [4] * 50


def test_a_draw_differs_between_epochs_and_examples(make_dataset):
  split = make(
    make_dataset(train=8, train_shards=1),
    operations=[preprocess.Shift(pixels=3), preprocess.Resize(image_size=8)],
  )
  (first, _, _), (second, _, _) = training(split, 2)
  shapes = [(image > 0).tobytes() for image in [*first, *second]]
  assert len(set(shapes)) > 8


def test_replicas_take_their_shares_of_the_same_global_batch(make_dataset):
  split = make(make_dataset())
  whole = training(split, 5)
  halves = training(split, 10, replicas=2)
  joined = [
    tuple(np.concatenate(pair) for pair in zip(halves[i], halves[i + 1]))
    for i in range(0, 10, 2)
  ]
  assert_same(joined, whole)


@pytest.mark.parametrize("hosts, replicas", [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_evaluation_counts_each_image_once(make_dataset, hosts, replicas):
  split = make(make_dataset(heldout=13), "heldout")
  index, seen = split.index(), []
  steps = evaluation_steps(index, 4 * hosts)
  for host in range(hosts):
    batches = split.evaluation_batches(
      index, host_batch=4, replicas=replicas, host=host, num_hosts=hosts
    )
    batches = list(batches)
    assert len(batches) == steps * replicas
    for images, labels, weights in batches:
      assert images.shape == [4 // replicas, 8, 8, 3]
      real = weights.numpy() == 1.0
      assert set(weights.numpy()) <= {0.0, 1.0}
      values = images.numpy()[real, 0, 0, 0]
      np.testing.assert_array_equal(values % 4, labels.numpy()[real])
      seen.extend(values)
  assert sorted(seen) == list(range(13))


def test_classes_must_match_the_index(make_dataset):
  with pytest.raises(UserError, match="has 4 classes, but NUM_CLASSES = 6"):
    make(make_dataset(), num_classes=6).index()


def test_a_label_out_of_range_is_found_without_an_index(make_dataset):
  directory = make_dataset()
  os.remove(os.path.join(directory, INDEX))
  assert make(directory, num_classes=6).index().num_classes == 4
  with pytest.raises(UserError, match="4 classes or more.*NUM_CLASSES = 3"):
    make(directory, num_classes=3).index()


def test_images_must_end_at_a_fixed_size(make_dataset):
  split = make(make_dataset(), operations=[preprocess.Flip()])
  with pytest.raises(UserError, match="expected a fixed size"):
    training(split, 1)


def test_image_shape_and_home_folder():
  split = make("~/data")
  assert split.image_shape() == (8, 8, 3)
  assert split.directory == os.path.expanduser("~/data")


def test_repeated_augmentation_puts_copies_side_by_side(make_dataset):
  """A batch of 8 holds 2 images 4 times; the order is that of no copies."""
  split = make(make_dataset(), multiplicity=4)
  batches = training(split, 50)
  values = np.concatenate([images[:, 0, 0, 0] for images, _, _ in batches])
  np.testing.assert_array_equal(values[::4], values[3::4])
  assert np.bincount(values[::4]).tolist() == [2] * 50  # 100 of 50 images
  plain = training(make(split.directory), 13)
  once = np.concatenate([images[:, 0, 0, 0] for images, _, _ in plain])
  np.testing.assert_array_equal(values[::4], once[:100])
  for images, labels, _ in batches:
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 4, labels)
  assert_same(training(split, 20, start_step=30), batches[30:])


def test_every_copy_is_drawn_for_itself(make_dataset):
  operations = [preprocess.Shift(pixels=3), preprocess.Resize(image_size=8)]
  split = make(make_dataset(), operations=operations, multiplicity=4)
  sheets = np.concatenate([images for images, _, _ in training(split, 25)])
  # The border that a shift leaves black tells how far an image was moved.
  moves = {
    tuple(tuple((sheet[..., 0] > 0).any(axis=axis).tolist()) for axis in (0, 1))
    for sheet in sheets
  }
  assert len(moves) > 20
  copies = sheets.reshape(-1, 4, *sheets.shape[1:])
  alike = [np.array_equal(a, b) for a, b, *_ in copies]
  assert np.mean(alike) < 0.3


def test_multiplicities_that_cannot_be(make_dataset):
  directory = make_dataset()
  with pytest.raises(UserError, match="multiplicity = 0 cannot be used"):
    make(directory, multiplicity=0)
  split = make(directory, multiplicity=3)
  with pytest.raises(
    UserError, match="batch of 4 .* MULTIPLICITY = 3; .* of 6"
  ):
    training(split, 1, replicas=2)


def beside(first, second, seed):
  """A mixer that shows a half of each image."""
  del seed
  return tf.concat([first[:, :4], second[:, 4:]], axis=1), tf.constant(0.5)


def above(first, second, seed):
  del seed
  return tf.concat([first[:2], second[2:]], axis=0), tf.constant(0.25)


def test_mixing_reads_each_image_once_an_epoch(make_dataset):
  """Batches of 8 hold 16 of the 50 images."""
  split = make(make_dataset(), mixers=[beside, above])
  batches = training(split, 25)
  first = np.concatenate([images[:, 0, 0, 0] for images, _, _ in batches])
  second = np.concatenate([images[:, 7, 7, 0] for images, _, _ in batches])
  for epoch in range(8):
    part = slice(epoch * 25, epoch * 25 + 25)
    read = np.concatenate([first[part], second[part]])
    assert sorted(read) == list(range(50))
  for images, labels, _ in batches:
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 4, labels.first)
    np.testing.assert_array_equal(images[:, 7, 7, 0] % 4, labels.second)
    # Mixers take turns, half of a batch each.
    np.testing.assert_array_equal(labels.share, [0.5, 0.25] * 4)
    of_first = images[..., 0] == images[:, :1, :1, 0]
    np.testing.assert_array_equal(of_first.mean(axis=(1, 2)), labels.share)
  again = training(split, 5, start_step=20)
  for batch, other in zip(again, batches[20:]):
    np.testing.assert_array_equal(batch[0], other[0])
    np.testing.assert_array_equal(batch[1], other[1])


@pytest.mark.parametrize(
  "options, count",
  [
    ({}, 8),
    ({"multiplicity": 4}, 2),
    ({"mixers": [beside, above]}, 16),
    ({"mixers": [beside, above], "multiplicity": 4}, 4),
  ],
)
def test_the_examples_of_a_step_are_those_of_its_batch(
  make_dataset, options, count
):
  split = make(make_dataset(), **options)
  assert split.examples_a_step(8) == count
  name = {split.index().fields.name: tf.io.FixedLenFeature([], tf.string)}
  for host in range(2):
    order = {"shuffle_buffer": 20, "seed": 4, "host": host, "num_hosts": 2}
    examples = split.training_examples(
      split.index(), host_batch=8, start_step=3, **order
    ).take(count)
    positions, read = zip(*examples.as_numpy_iterator())
    assert positions == tuple(range(3 * count, 4 * count))
    parsed = tf.io.parse_example(list(read), name)
    (names,) = (values.numpy() for values in parsed.values())
    numbers = np.array([int(n.split(b".")[0]) for n in names])
    ((images, _, _),) = training(split, 1, start_step=3, **order)
    copies = options.get("multiplicity", 1)
    shown = [images[:, 0, 0, 0]]
    if "mixers" in options:
      shown.append(images[:, 7, 7, 0])
    for source, values in enumerate(shown):
      expected = numbers[source :: len(shown)].repeat(copies)
      np.testing.assert_array_equal(values, expected)


def test_every_host_mixes_in_every_way(make_dataset):
  split = make(make_dataset(), mixers=[beside, above])
  for host in range(2):
    ((_, labels, _),) = training(split, 1, host=host, num_hosts=2)
    np.testing.assert_array_equal(labels.share, [0.5, 0.25] * 4)


def test_copies_of_a_pair_are_mixed_and_changed_each_for_itself(make_dataset):
  split = make(
    make_dataset(),
    mixers=[mixing.MixUp(alpha=1.0)],
    mixed_operations=[preprocess.Shift(pixels=2)],
    multiplicity=4,
  )
  for images, labels, _ in training(split, 5):
    assert images.shape == (8, 8, 8, 3)
    for part in (labels.first, labels.second):
      assert (part.reshape(2, 4) == part.reshape(2, 4)[:, :1]).all()
    assert len(set(labels.share)) == 8
    assert len({image.tobytes() for image in images}) == 8


def test_last_operations_come_after_all_others(make_dataset):
  def invert(image, seed):
    del seed
    return 255 - image

  def halve(image, seed):
    del seed
    return image // 2

  split = make(
    make_dataset(), mixed_operations=[invert], last_operations=[halve]
  )
  assert split.mixed_operations == (invert, halve)
  for images, _, _ in training(split, 3):
    # Image i is filled with the value i.
    assert np.isin(images, (255 - np.arange(50)) // 2).all()


def test_hosts_draw_each_for_itself(make_dataset):
  def fill(image, seed):
    value = tf.random.stateless_uniform([], seed, 0, 256, tf.int32)
    return tf.fill([8, 8, 3], tf.cast(value, tf.uint8))

  split = make(make_dataset(), operations=[fill])
  hosts = [
    training(split, 3, host=host, num_hosts=2, host_batch=8)
    for host in range(2)
  ]
  drawn = np.array([[images[:, 0, 0, 0] for images, *_ in h] for h in hosts])
  assert np.mean(drawn[0] == drawn[1]) < 0.2


def test_copies_of_a_bad_record_have_weight_0(make_dataset):
  def refuse(image, seed):
    value = preprocess.decode(image)[0, 0, 0]
    tf.debugging.Assert(value != 7, [value])
    return image

  operations = [refuse, preprocess.Resize(image_size=8)]
  split = make(make_dataset(), operations=operations, multiplicity=2)
  weights = np.concatenate([w for _, _, w in training(split, 25)])
  assert (weights == 0).sum() == 4  # one of 50, two copies, two epochs


def test_the_bound_on_pixels_is_the_splits(make_dataset):
  split = make(make_dataset(), max_pixels=15)
  (_, _, weights), *_ = training(split, 1)
  assert not weights.any()
  (cause,) = split.faults.collect()
  assert cause == "image too large"


def test_faults_are_judged_by_the_fields_of_the_shards(tmp_path):
  split = make(store_with_tfds(tmp_path), num_classes=2)
  split.index()
  assert split.faults.examine.fields == split.index().fields
  assert split.faults.examine.fields.label == "kind"
