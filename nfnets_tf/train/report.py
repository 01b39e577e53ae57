"""What a trained classifier gets right and wrong, class by class."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.dataset_info import (
  SplitInfo,
  evaluation_steps,
  read_filenames,
)
from nfnets_tf.data.pipeline import Split
from nfnets_tf.fileio import write_atomically
from nfnets_tf.train.pictures import draw_confusion, draw_images


class ClassificationReport:
  """Looks at every held-out image and writes down what became of it.

  Below the folder that it is given: `per_class.csv` (images, top-1, precision),
  `confusion.csv` and `confusion.png` (rows are the true classes), and the most
  wrong images, those of the highest loss, as `most_wrong.csv` and
  `most_wrong.png`.

  Args:
    most_wrong: number of images to show.
  """

  def __init__(self, *, most_wrong: int):
    self.most_wrong = most_wrong

  def __call__(
    self,
    model: keras.Model,
    split: Split,
    index: SplitInfo,
    directory: str,
    *,
    class_names: Sequence[str],
    batch_size: int,
  ) -> pd.DataFrame:
    """Writes the files, with the weights that the model has now.

    Args:
      model: maps batches of images to logits.
      split: the held-out split.
      index: what it holds.
      directory: of the files; made if need be.
      class_names: in the order of the logits.
      batch_size: images that are computed at a time.

    Returns:
      What `per_class.csv` holds.
    """
    labels, probabilities, worst = self._look(model, split, index, batch_size)
    guesses = probabilities.argmax(axis=1)
    tf.io.gfile.makedirs(directory)
    confusion = np.zeros([len(class_names)] * 2, np.int64)
    np.add.at(confusion, (labels, guesses), 1)
    per_class = _per_class(confusion, class_names)
    _write_csv(per_class, os.path.join(directory, "per_class.csv"))
    _write_csv(
      pd.DataFrame(confusion, class_names, class_names),
      os.path.join(directory, "confusion.csv"),
      index=True,
    )
    draw_confusion(
      confusion, class_names, os.path.join(directory, "confusion.png")
    )
    names = read_filenames(index)
    table = pd.DataFrame(
      {
        "filename": names[position],
        "label": class_names[labels[position]],
        "prediction": class_names[guesses[position]],
        "probability_of_label": probabilities[position, labels[position]],
        "probability_of_prediction": probabilities[position].max(),
      }
      for position, _ in worst
    )
    _write_csv(table, os.path.join(directory, "most_wrong.csv"))
    draw_images(
      [image for _, image in worst],
      [
        f"{row.label}\n→ {row.prediction} {row.probability_of_prediction:.0%}"
        for row in table.itertuples()
      ],
      os.path.join(directory, "most_wrong.png"),
    )
    return per_class

  def _look(self, model, split, index, batch_size):
    """Returns (labels, probabilities, [(position, image)] of the worst)."""
    predict = tf.function(
      lambda images: tf.nn.softmax(model(images, training=False))
    )
    labels, probabilities, worst = [], [], []
    batches = split.evaluation_batches(index, host_batch=batch_size, replicas=1)
    for images, truth, weights in batches.take(
      evaluation_steps(index, batch_size)
    ):
      real = weights.numpy() > 0
      truth, found = truth.numpy()[real], predict(images).numpy()[real]
      of_label = found[np.arange(len(truth)), truth]
      wrong = np.flatnonzero(found.argmax(axis=1) != truth)
      first = sum(map(len, labels))
      worst += [(of_label[i], first + i, images[i].numpy()) for i in wrong]
      worst = sorted(worst, key=lambda one: one[:2])[: self.most_wrong]
      labels.append(truth)
      probabilities.append(found)
    positions = [(position, image) for _, position, image in worst]
    return np.concatenate(labels), np.concatenate(probabilities), positions


def _per_class(confusion: np.ndarray, class_names) -> pd.DataFrame:
  """Rates are empty where there is nothing to divide by."""
  images, guesses = confusion.sum(axis=1), confusion.sum(axis=0)
  right = np.diag(confusion)
  return pd.DataFrame(
    {
      "class": class_names,
      "images": images,
      "right": right,
      "top1": right / np.where(images, images, np.nan),
      "precision": right / np.where(guesses, guesses, np.nan),
    }
  )


def _write_csv(table: pd.DataFrame, path: str, *, index: bool = False) -> None:
  write_atomically(path, table.to_csv(index=index, float_format="%.6g"))
