import numpy as np
import pytest

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.train import samples
from nfnets_tf.train.samples import heldout_sample


@pytest.fixture
def split(make_dataset):
  return pipeline.Split(
    directory=make_dataset(heldout=13),
    split="heldout",
    num_classes=4,
    operations=[preprocess.Resize(image_size=8)],
  )


def positions(images):
  """Image i of the data set is filled with the value i."""
  return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("count", [1, 4, 5, 13, 99])
def test_the_first_images_and_their_labels(split, count, monkeypatch):
  monkeypatch.setattr(samples, "_BATCH", 4)
  index = split.index()
  images, labels = heldout_sample(split, index, count)
  in_order = [*range(0, 13, 2), *range(1, 13, 2)]  # two shards in turn
  assert positions(images) == in_order[:count]
  assert labels.tolist() == [i % 4 for i in in_order[:count]]
  assert images.dtype == np.uint8


def test_images_that_cannot_be_used_are_left_out(make_dataset):
  split = pipeline.Split(
    directory=make_dataset(heldout=3),
    split="heldout",
    num_classes=4,
    operations=[preprocess.Resize(image_size=8)],
    max_pixels=1,
  )
  images, labels = heldout_sample(split, split.index(), 8)
  assert images.shape == (0, 8, 8, 3) and labels.shape == (0,)
