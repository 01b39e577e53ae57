"""The report on a trained classifier: errors by class, and the worst images."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.metrics import (
  ConfusionMatrixDisplay,
  confusion_matrix,
  precision_recall_fscore_support,
)

from nfnets_tf import figures
from nfnets_tf.data.dataset_info import (
  SplitInfo,
  evaluation_steps,
  read_filenames,
)
from nfnets_tf.data.pipeline import Split
from nfnets_tf.fileio import write_atomically
from nfnets_tf.keras_api import keras
from nfnets_tf.ranges import accepts, integer

_MAX_LABELED_CLASSES = 60  # more names are illegible
_MAX_NUMBERED_CLASSES = 20
_DPI = 110
_TITLE_WIDTH = 24  # in Latin characters


@accepts(most_wrong=integer(0))
class ClassificationReport:
  """Evaluates every held-out image and writes tables and pictures.

  In the given directory: `per_class.csv` (images, top-1, precision),
  `confusion.csv` and `confusion.png` (rows are the true classes), and the
  misclassified images of the highest loss, as `most_wrong.csv` and
  `most_wrong.png`.

  Args:
    most_wrong: number of misclassified images to show, at least 0.

  Raises:
    UserError: if it is out of range.
  """

  def __init__(self, *, most_wrong: int):
    self.most_wrong = most_wrong

  def __call__(
    self,
    model: keras.Model,
    split: Split,
    info: SplitInfo,
    directory: str,
    *,
    class_names: Sequence[str],
    batch_size: int,
  ) -> pd.DataFrame:
    """Writes the files.

    Args:
      model: maps images [batch, height, width, 3] in [0, 255] to logits [batch,
        classes], with its present weights.
      split: the held-out split.
      info: of the split.
      directory: of the files, local or gs://; created if necessary.
      class_names: in the order of the logits.
      batch_size: images per forward pass.

    Returns:
      The content of `per_class.csv`.
    """
    labels, predicted, worst = _predict(
      model, split, info, batch_size, self.most_wrong
    )
    tf.io.gfile.makedirs(directory)
    path = functools.partial(os.path.join, directory)
    per_class = _per_class(labels, predicted, class_names)
    _write(per_class, path("per_class.csv"))
    confusion = _confusion(labels, predicted, len(class_names))
    table = pd.DataFrame(confusion, class_names, class_names)
    _write(table, path("confusion.csv"), index=True)
    draw_confusion(confusion, class_names, path("confusion.png"))
    table = _table_of_errors(worst, read_filenames(info), class_names)
    _write(table, path("most_wrong.csv"))
    titles = [
      f"{figures.label(row.label, _TITLE_WIDTH)}\n→"
      f" {figures.label(row.prediction, _TITLE_WIDTH - 7)}"
      f" {row.probability_of_prediction:.0%}"
      for row in table.itertuples()
    ]
    draw_images([x.image for x in worst], titles, path("most_wrong.png"))
    return per_class


@dataclasses.dataclass(frozen=True)
class _Error:
  """A misclassified image.

  Attributes:
    position: of its record among all of the split, valid or not.
    image: uint8 [height, width, 3].
    label: class number.
    probabilities: float32 [classes].
  """

  position: int
  image: np.ndarray
  label: int
  probabilities: np.ndarray

  def rank(self) -> tuple[float, int]:
    """Sorts the errors: the lowest probability of the label comes first."""
    return float(self.probabilities[self.label]), self.position


def _predict(
  model: keras.Model,
  split: Split,
  info: SplitInfo,
  batch_size: int,
  most_wrong: int,
) -> tuple[np.ndarray, np.ndarray, list[_Error]]:
  """Returns labels and predictions, integers [valid images], and worst errors.

  Records that cannot be read, and the padding of the last batch, are left out.
  """
  predict = tf.function(
    lambda images: tf.nn.softmax(model(images, training=False))
  )
  all_labels, all_predicted, worst = [], [], []
  batches = split.evaluation_batches(info, host_batch=batch_size, replicas=1)
  batches = batches.take(evaluation_steps(info, batch_size))
  # The last batch is padded, so that its shape compiles nothing new.
  for number, (images, labels, weights) in enumerate(batches):
    rows = predict(images).numpy()
    images, labels = images.numpy(), labels.numpy()
    predicted = rows.argmax(axis=1)
    valid = weights.numpy() > 0
    worst += [
      _Error(number * batch_size + i, images[i], labels[i], rows[i])
      for i in np.flatnonzero(valid & (predicted != labels))
    ]
    worst = sorted(worst, key=_Error.rank)[:most_wrong]
    all_labels.append(labels[valid])
    all_predicted.append(predicted[valid])
  return np.concatenate(all_labels), np.concatenate(all_predicted), worst


def _table_of_errors(
  errors: Sequence[_Error],
  filenames: Sequence[str],
  class_names: Sequence[str],
) -> pd.DataFrame:
  rows = [
    (
      filenames[error.position],
      class_names[error.label],
      class_names[error.probabilities.argmax()],
      error.probabilities[error.label],
      error.probabilities.max(),
    )
    for error in errors
  ]
  columns = ["filename", "label", "prediction"]
  columns += ["probability_of_label", "probability_of_prediction"]
  return pd.DataFrame(rows, columns=columns)


def _write(table: pd.DataFrame, path: str, index: bool = False) -> None:
  write_atomically(path, table.to_csv(index=index, float_format="%.6g"))


def _confusion(labels, predicted, classes: int) -> np.ndarray:
  if not len(labels):
    return np.zeros([classes, classes], int)  # scikit-learn would fail
  return confusion_matrix(labels, predicted, labels=range(classes))


def _per_class(labels, predicted, class_names) -> pd.DataFrame:
  # Rates are NaN, empty in the file, for classes without images; without any,
  # scikit-learn's functions fail.
  if not len(labels):
    columns = ["class", "images", "right", "top1", "precision"]
    return pd.DataFrame(
      [(name, 0, 0, np.nan, np.nan) for name in class_names], columns=columns
    )
  precision, recall, _, images = precision_recall_fscore_support(
    labels, predicted, labels=range(len(class_names)), zero_division=np.nan
  )
  right = np.bincount(labels[labels == predicted], minlength=len(class_names))
  return pd.DataFrame(
    {
      "class": class_names,
      "images": images,
      "right": right,
      "top1": recall,  # a class' top-1 is its recall
      "precision": precision,
    }
  )


def draw_confusion(
  confusion: np.ndarray, class_names: Sequence[str], path: str
) -> None:
  """Draws a confusion matrix as a PNG, colored by fractions of true classes.

  Args:
    confusion: counts [true class, predicted class], integers.
    class_names: in the order of the counts.
    path: of the picture, local or gs://.
  """
  count = len(class_names)
  side = min(16.0, 3.5 + 0.35 * count)
  figure = Figure(figsize=(side + 1.0, side), layout="constrained")
  axes = figure.subplots()
  images = confusion.sum(axis=1, keepdims=True)
  display = ConfusionMatrixDisplay(100.0 * confusion / np.maximum(images, 1))
  display.plot(
    ax=axes,
    include_values=count <= _MAX_NUMBERED_CLASSES,
    cmap="Blues",
    colorbar=False,
    im_kw={"vmin": 0.0, "vmax": 100.0},
    text_kw={"fontsize": "small"},
  )
  if display.text_ is not None:
    for text, number in zip(display.text_.flat, confusion.flat):
      text.set_text(f"{number}" if number else "")
  figure.colorbar(
    display.im_, ax=axes, label="fraction of the true class (%)", shrink=0.8
  )
  axes.set(xlabel="predicted", ylabel="true")
  ticks, names = range(count), list(map(figures.label, class_names))
  if count > _MAX_LABELED_CLASSES:
    ticks = names = range(0, count, count // 10)
  axes.set_xticks(ticks, names, rotation=90)
  axes.set_yticks(ticks, names)
  figures.save_png(figure, path, dpi=_DPI)


def draw_images(
  images: Sequence[np.ndarray], titles: Sequence[str], path: str
) -> None:
  """Draws images in a grid, as a PNG.

  Args:
    images: uint8 [height, width, 3] each; may be empty.
    titles: of the images, at most two lines each.
    path: of the picture, local or gs://.
  """
  columns = max(1, math.ceil(math.sqrt(len(images))))
  rows = max(1, math.ceil(len(images) / columns))
  figure = Figure(figsize=(1.7 * columns, 2.1 * rows), layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False)
  for axes in grid.flat:
    axes.axis("off")
  for axes, image, title in zip(grid.flat, images, titles):
    axes.imshow(image)
    axes.set_title(title, fontsize="small")
  if not images:
    grid[0, 0].set_title("no image is wrong", fontsize="small")
  figures.save_png(figure, path, dpi=_DPI)
