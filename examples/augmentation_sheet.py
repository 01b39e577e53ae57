"""Draws augmented images, one row per augmentation.

python examples/augmentation_sheet.py photos docs/images/augmentation.jpg
"""

import argparse
import itertools
import os

import matplotlib
import tensorflow as tf
from matplotlib.figure import Figure

from nfnets_tf.data import augmentation, preprocessing, randaugment

COLUMNS, SIZE = 8, 112


def rows(images):
  """Yields (title, images) of every augmentation.

  Args:
    images: twice `COLUMNS` encoded strings.
  """
  crop = preprocessing.compose(
    [preprocessing.InceptionCrop(image_size=SIZE), preprocessing.Flip()]
  )
  whole = preprocessing.compose([preprocessing.Resize(image_size=SIZE)])
  seeds = [tf.constant([0, i], tf.int64) for i in range(2 * COLUMNS)]
  plain = [whole(image, seed) for image, seed in zip(images, seeds)]
  first, second = plain[:COLUMNS], plain[COLUMNS:]
  yield "as they are", first
  yield "crop and flip", list(map(crop, images, seeds[:COLUMNS]))
  # Moves and cut-outs are in pixels of 224.
  scale = SIZE / 224
  for magnitude in (5, 10, 15):
    augment = randaugment.RandAugment(
      layers=4,
      magnitude=magnitude,
      translation=100 * scale,
      cut_out=40 * scale,
    )
    yield f"RandAugment {magnitude}", list(map(augment, first, seeds))
  erase = augmentation.RandomErasing(probability=1.0)
  yield "random erasing", list(map(erase, first, seeds))
  for title, mixer in (
    ("MixUp", augmentation.MixUp(alpha=1.0)),
    ("CutMix", augmentation.CutMix()),
  ):
    yield title, [mixer(*pair)[0] for pair in zip(first, second, seeds)]
  for name in randaugment.DEEPMIND_OPERATIONS:
    operation = randaugment.RandAugment(
      layers=1,
      magnitude=10,
      operations=[name],
      translation=100 * scale,
      cut_out=40 * scale,
    )
    yield name, list(map(operation, first, seeds))


def draw(table, path: str) -> None:
  """Draws rows of uint8 images to a file."""
  table = list(table)
  figure = Figure(figsize=(COLUMNS * 0.9 + 1.2, len(table) * 0.9))
  figure.subplots_adjust(0.14, 0.002, 0.998, 0.998, 0.03, 0.03)
  grid = figure.subplots(len(table), COLUMNS)
  for axes, (title, images) in zip(grid, table):
    axes[0].text(
      -0.08,
      0.5,
      title,
      ha="right",
      va="center",
      transform=axes[0].transAxes,
      fontsize=8,
    )
    for cell, image in zip(axes, images):
      cell.imshow(image)
      cell.axis("off")
  figure.savefig(path, dpi=100)


def main() -> None:
  """Reads a folder's first images and draws them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", help="JPEG or PNG files, at any depth")
  parser.add_argument("output", help="a JPEG or PNG")
  options = parser.parse_args()
  matplotlib.use("Agg")
  paths = (
    os.path.join(folder, name)
    for folder, _, names in sorted(os.walk(options.folder))
    for name in sorted(names)
    if name.lower().endswith((".jpg", ".jpeg", ".png"))
  )
  images = [tf.io.read_file(p) for p in itertools.islice(paths, 2 * COLUMNS)]
  if len(images) < 2 * COLUMNS:
    parser.error(f"{options.folder!r} holds fewer than {2 * COLUMNS} images")
  draw(rows(images), options.output)


if __name__ == "__main__":
  main()
