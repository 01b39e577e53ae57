"""The report against counts made by hand."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.train.report import ClassificationReport

NAMES = ["a", "b", "c", "d"]
HELDOUT = 13


def guess(value):
  """What the stand-in makes of image `value`: 3 of 13 are wrong."""
  return {4: 1, 6: 1, 7: 2}.get(value, value % 4)


class StandIn(keras.Model):
  """Knows an image by its pixels; the surer the larger its value."""

  def call(self, images, training=False):
    assert not training
    values = tf.cast(images[:, 0, 0, 0], tf.int32)
    table = tf.constant([guess(value) for value in range(HELDOUT)])
    sureness = 1.0 + tf.cast(values, tf.float32)
    return sureness[:, None] * tf.one_hot(tf.gather(table, values), 4)


@pytest.fixture
def made(make_dataset, tmp_path):
  split = pipeline.Split(
    directory=make_dataset(heldout=HELDOUT),
    split="heldout",
    num_classes=4,
    operations=[preprocess.Resize(image_size=8)],
  )
  directory = tmp_path / "report"

  def make(most_wrong=25, batch_size=4, class_names=NAMES):
    table = ClassificationReport(most_wrong=most_wrong)(
      StandIn(),
      split,
      split.index(),
      str(directory),
      class_names=class_names,
      batch_size=batch_size,
    )
    return directory, table

  return make


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_image_counts_once_also_in_a_padded_batch(made, batch_size):
  directory, table = made(batch_size=batch_size)
  labels = np.arange(HELDOUT) % 4
  guesses = np.array([guess(value) for value in range(HELDOUT)])
  confusion = pd.read_csv(directory / "confusion.csv", index_col=0)
  assert list(confusion.columns) == list(confusion.index) == NAMES
  for true in range(4):
    for said in range(4):
      expected = ((labels == true) & (guesses == said)).sum()
      assert confusion.iloc[true, said] == expected
  written = pd.read_csv(directory / "per_class.csv")
  assert written["class"].tolist() == NAMES
  assert written["images"].tolist() == [4, 3, 3, 3]
  assert written["right"].tolist() == [3, 3, 2, 2]
  np.testing.assert_allclose(written["top1"], [3 / 4, 1, 2 / 3, 2 / 3], 1e-5)
  np.testing.assert_allclose(
    written["precision"], [1, 3 / 5, 2 / 3, 1], rtol=1e-5
  )
  np.testing.assert_allclose(table["top1"], written["top1"], rtol=1e-5)


def test_the_most_wrong_are_those_of_the_highest_loss(made):
  directory, _ = made(most_wrong=2)
  worst = pd.read_csv(directory / "most_wrong.csv")
  # 7 is surer than 6, and 6 than 4.
  assert worst["filename"].tolist() == ["7.png", "6.png"]
  assert worst["label"].tolist() == ["d", "c"]
  assert worst["prediction"].tolist() == ["c", "b"]
  e = np.exp(8.0)
  assert worst["probability_of_prediction"][0] == pytest.approx(
    e / (e + 3), rel=1e-4
  )
  assert worst["probability_of_label"][0] == pytest.approx(
    1 / (e + 3), rel=1e-4
  )
  for name in ("confusion.png", "most_wrong.png"):
    assert (directory / name).stat().st_size > 3_000


def test_a_class_that_is_never_there_or_never_said_has_no_rate(made):
  split_names = [*NAMES, "e"]
  directory, _ = made(class_names=split_names)
  last = pd.read_csv(directory / "per_class.csv").iloc[-1]
  assert last["class"] == "e" and last["images"] == 0
  assert np.isnan(last["top1"]) and np.isnan(last["precision"])
