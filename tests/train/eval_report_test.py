"""The report against counts by hand."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.data.tfrecords import (
  Fields,
  read_features,
  record_spans,
  write_shard,
)
from nfnets_tf.keras_api import keras
from nfnets_tf.train import eval_report
from nfnets_tf.train.eval_report import (
  ClassificationReport,
  draw_confusion,
  draw_images,
)
from tests.support.datasets import make_split, remove_index

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


@pytest.mark.parametrize(
  "batch_size", [pytest.param(1, marks=pytest.mark.soak), 4, 64]
)
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


BROKEN = {
  "none": [],
  "first": [0],
  "third": [2],
  "last": [12],
  "whole batch": [4, 5, 6, 7],
  "every other": range(0, 13, 2),
  "a run across batches and shards": range(3, 10),
  "all but one": [i for i in range(13) if i != 6],
  "all": range(13),
}


def break_records(directory, broken):
  """Rewrites the held-out shards with images that cannot be decoded."""
  for shard in sorted(pathlib.Path(directory).glob("heldout-*")):
    records = []
    for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
      name = read_features(record, Fields()).filename
      if int(name.split(".")[0]) in broken:
        record = record.replace(b"PNG", b"GNP")
      records.append((0, record))
    write_shard(str(shard), records)
  remove_index(directory)


@pytest.mark.parametrize(
  "kind, batch_size",
  [
    ("first", 4),
    ("last", 64),
    ("whole batch", 4),
    ("a run across batches and shards", 4),
    ("all", 5),
    *(
      pytest.param(*case, marks=pytest.mark.soak)
      for case in [
        ("none", 5),
        ("third", 5),
        ("every other", 5),
        ("all but one", 13),
      ]
    ),
  ],
)
def test_rows_and_pictures_are_of_one_image(
  make_dataset, tmp_path, monkeypatch, kind, batch_size
):
  """Against a twin that takes the records one by one."""
  directory = make_dataset(heldout=HELDOUT)
  broken = set(BROKEN[kind])
  break_records(directory, broken)
  split = make_split(directory, "heldout")
  info = dataclasses.replace(split.read_info(), class_names=tuple(NAMES))
  drawn = []
  monkeypatch.setattr(
    eval_report, "draw_images", lambda *args: drawn.append(args)
  )
  monkeypatch.setattr(eval_report, "draw_confusion", lambda *args: None)
  table = ClassificationReport(most_wrong=25)(
    AlwaysWrong(),
    split,
    info,
    str(tmp_path),
    class_names=NAMES,
    batch_size=batch_size,
  )
  kept = [i for i in range(HELDOUT) if i not in broken]
  # The brighter, the more confident.
  worst = pd.read_csv(tmp_path / "most_wrong.csv")
  assert worst["filename"].tolist() == [f"{i}.png" for i in kept[::-1]]
  assert worst["label"].tolist() == [NAMES[i % 4] for i in kept[::-1]]
  assert worst["prediction"].tolist() == [
    NAMES[(i + 1) % 4] for i in kept[::-1]
  ]
  e = np.exp(0.1 + 0.1 * np.array(kept[::-1]))
  np.testing.assert_allclose(
    worst["probability_of_prediction"].astype(float), e / (e + 3), rtol=1e-4
  )
  images, titles, _ = drawn[0]
  assert [image[0, 0, 0] for image in images] == kept[::-1]
  assert [title[0] for title in titles] == [NAMES[i % 4] for i in kept[::-1]]
  counts = np.bincount(np.array(kept, int) % 4, minlength=4)
  assert table["images"].tolist() == counts.tolist()
  assert table["right"].tolist() == [0] * 4


class AlwaysWrong(keras.Model):
  """Predicts the class after the right one, with certainty by brightness."""

  def call(self, images, training=False):
    values = tf.cast(images[:, 0, 0, 0], tf.int32)
    confidence = 0.1 + 0.1 * tf.cast(values, tf.float32)
    return confidence[:, None] * tf.one_hot((values + 1) % 4, 4)


@pytest.mark.parametrize(
  "record",
  [2, *(pytest.param(x, marks=pytest.mark.soak) for x in (0, 5))],
)
def test_names_after_a_record_that_is_unreadable_in_its_shard(
  make_dataset, tmp_path, monkeypatch, record
):
  """A flipped bit below TFRecord's checksum of the data, then of a length."""
  directory = make_dataset(heldout=HELDOUT)
  shard = min(pathlib.Path(directory).glob("heldout-*"))
  offset, length = list(record_spans(str(shard)))[record]
  content = bytearray(shard.read_bytes())
  content[offset + length // 2] ^= 1
  shard.write_bytes(content)
  split = make_split(directory, "heldout")
  drawn = []
  monkeypatch.setattr(
    eval_report, "draw_images", lambda *args: drawn.append(args)
  )
  monkeypatch.setattr(eval_report, "draw_confusion", lambda *args: None)
  ClassificationReport(most_wrong=25)(
    AlwaysWrong(),
    split,
    split.read_info(),
    str(tmp_path),
    class_names=NAMES,
    batch_size=4,
  )
  worst = pd.read_csv(tmp_path / "most_wrong.csv")
  pictured = [f"{image[0, 0, 0]}.png" for image in drawn[0][0]]
  assert worst["filename"].tolist() == pictured
  assert len(pictured) >= HELDOUT // 2  # the other shard, at least


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
