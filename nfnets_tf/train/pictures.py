"""Pictures of a report: a confusion matrix, a sheet of images."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

_LABELLED_CLASSES = 60  # more names than that cannot be read
_NUMBERED_CLASSES = 20


def draw_confusion(
  confusion: np.ndarray, class_names: Sequence[str], path: str
) -> None:
  """Draws how often each class is taken for each other, as a PNG.

  Args:
    confusion: counts [true class, predicted class].
    class_names: of the classes.
    path: of the picture, local or gs://.
  """
  count = len(class_names)
  side = min(16.0, 3.5 + 0.35 * count)
  figure = Figure(figsize=(side + 1.0, side), layout="constrained")
  axes = figure.subplots()
  of_class = confusion.sum(axis=1, keepdims=True)
  shares = 100.0 * confusion / np.maximum(of_class, 1)
  image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=100.0)
  figure.colorbar(image, label="share of the true class (%)", shrink=0.8)
  axes.set(xlabel="predicted", ylabel="true")
  if count <= _LABELLED_CLASSES:
    axes.set_xticks(range(count), class_names, rotation=90)
    axes.set_yticks(range(count), class_names)
  if count <= _NUMBERED_CLASSES:
    for (row, column), number in np.ndenumerate(confusion):
      if number:
        dark = shares[row, column] > 50.0
        axes.text(
          column,
          row,
          number,
          ha="center",
          va="center",
          fontsize="small",
          color="white" if dark else "black",
        )
  _save(figure, path)


def draw_images(
  images: Sequence[np.ndarray], titles: Sequence[str], path: str
) -> None:
  """Draws images in a grid, as a PNG.

  Args:
    images: uint8 [height, width, 3] each; there may be none.
    titles: of the images, of two lines at most.
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
  _save(figure, path)


def _save(figure: Figure, path: str) -> None:
  with tf.io.gfile.GFile(path, "wb") as file:
    figure.savefig(file, format="png", dpi=110)
