"""The report against counts by hand."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.keras_api import keras
from nfnets_tf.train.eval_report import (
  ClassificationReport,
  draw_confusion,
  draw_images,
)

NAMES = ["a", "b", "c", "d"]
HELDOUT = 13


def guess(value):
  """Returns the fake's prediction for image `value`; 3 of 13 are wrong."""
  return {4: 1, 6: 1, 7: 2}.get(value, value % 4)


class FakeClassifier(keras.Model):
  """Recognizes images by their pixels, more confidently the brighter."""

  def call(self, images, training=False):
    assert not training
    values = tf.cast(images[:, 0, 0, 0], tf.int32)
    table = tf.constant([guess(value) for value in range(HELDOUT)])
    confidence = 1.0 + tf.cast(values, tf.float32)
    return confidence[:, None] * tf.one_hot(tf.gather(table, values), 4)


@pytest.fixture
def write_report(make_dataset, tmp_path):
  split = pipeline.Split(
    directory=make_dataset(heldout=HELDOUT),
    split="heldout",
    num_classes=4,
    transforms=[preprocessing.Resize(image_size=8)],
  )
  directory = tmp_path / "report"

  def make(most_wrong=25, batch_size=4, class_names=NAMES):
    table = ClassificationReport(most_wrong=most_wrong)(
      FakeClassifier(),
      split,
      split.read_info(),
      str(directory),
      class_names=class_names,
      batch_size=batch_size,
    )
    return directory, table

  return make


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_counts_every_image_once(write_report, batch_size):
  directory, table = write_report(batch_size=batch_size)
  labels = np.arange(HELDOUT) % 4
  guesses = np.array([guess(value) for value in range(HELDOUT)])
  confusion = pd.read_csv(directory / "confusion.csv", index_col=0)
  assert list(confusion.columns) == list(confusion.index) == NAMES
  for true in range(4):
    for guessed in range(4):
      expected = ((labels == true) & (guesses == guessed)).sum()
      assert confusion.iloc[true, guessed] == expected
  written = pd.read_csv(directory / "per_class.csv")
  assert written["class"].tolist() == NAMES
  assert written["images"].tolist() == [4, 3, 3, 3]
  assert written["right"].tolist() == [3, 3, 2, 2]
  np.testing.assert_allclose(written["top1"], [3 / 4, 1, 2 / 3, 2 / 3], 1e-5)
  np.testing.assert_allclose(
    written["precision"], [1, 3 / 5, 2 / 3, 1], rtol=1e-5
  )
  np.testing.assert_allclose(table["top1"], written["top1"], rtol=1e-5)


def test_most_wrong_are_errors_of_highest_loss(write_report):
  directory, _ = write_report(most_wrong=2)
  worst = pd.read_csv(directory / "most_wrong.csv")
  # The brighter, the more confident.
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


def test_class_without_images_has_no_rates(write_report):
  directory, _ = write_report(class_names=[*NAMES, "e"])
  last = pd.read_csv(directory / "per_class.csv").iloc[-1]
  assert last["class"] == "e" and last["images"] == 0
  assert np.isnan(last["top1"]) and np.isnan(last["precision"])


def pixels(path):
  return tf.io.decode_png(path.read_bytes(), channels=3).numpy()


def test_confusion_matrix_is_dark_where_counts_are_high(
  tmp_path,
):
  def dark_fraction(confusion, name):
    draw_confusion(np.array(confusion), ["a", "b"], str(tmp_path / name))
    red = pixels(tmp_path / name)[..., 0]
    # The left half of the picture's upper part: true a, predicted a.
    height, width = red.shape
    return (red[: height // 3, width // 5 : width // 3] < 60).mean()

  right = dark_fraction([[9, 0], [0, 9]], "right.png")
  wrong = dark_fraction([[0, 9], [9, 0]], "wrong.png")
  assert right > 0.5 > 0.1 > wrong


def test_confusion_matrix_of_many_and_empty_classes(tmp_path):
  for count in (3, 30, 200):
    names = [f"class {i}" for i in range(count)]
    path = tmp_path / f"{count}.png"
    draw_confusion(np.zeros([count, count], int), names, str(path))
    assert pixels(path).shape[0] > 300


def test_images_are_drawn_in_a_grid(tmp_path):
  colors = np.eye(3, dtype=np.uint8) * 255
  images = [np.tile(color, [8, 8, 1]) for color in colors]
  draw_images(images, ["r", "g", "b"], str(tmp_path / "sheet.png"))
  sheet = pixels(tmp_path / "sheet.png").reshape(-1, 3)
  fractions = [(sheet == color).all(axis=1).mean() for color in colors]
  assert min(fractions) > 0.05


def test_draws_message_without_images(tmp_path):
  draw_images([], [], str(tmp_path / "none.png"))
  assert (pixels(tmp_path / "none.png") < 128).any()
