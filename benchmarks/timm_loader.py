"""timm's input pipeline, the peer of our own.

Run by `benchmarks.input_pipeline` where timm is installed; TensorFlow is
not imported. The transforms that timm trains NFNets with, as far as ours have
them, in a process per core, from images in memory to batches of bytes. What is
prefetched while others have their turn, at most 20 images a process, is in
timm's favor.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

_BATCH = 10


def make_takers(
  encoded: Sequence[bytes], size: int, layers: int, magnitude: int
) -> dict[str, Callable[[], None]]:
  """Returns {name: a function that takes all images once}.

  Args:
    encoded: JPEGs.
    size: height and width of the results, in pixels.
    layers: of RandAugment.
    magnitude: of RandAugment, in [0, 10].
  """
  from timm.data import create_transform

  def transform(auto_augment):
    return create_transform(
      size,
      is_training=True,
      color_jitter=0.0,
      interpolation="bicubic",
      auto_augment=auto_augment,
      use_prefetcher=True,  # bytes; normalized on the device, as ours
    )

  randaugment = f"rand-m{magnitude}-n{layers}-p1.0"
  kinds = {"crop": None, "randaugment": randaugment}
  return {
    name: _taker(encoded, transform(auto_augment))
    for name, auto_augment in kinds.items()
  }


def _taker(encoded, transform) -> Callable[[], None]:
  import PIL.Image
  import torch
  from timm.data.loader import fast_collate

  class Images(torch.utils.data.Dataset):
    def __len__(self):
      return len(encoded)

    def __getitem__(self, index):
      image = PIL.Image.open(io.BytesIO(encoded[index])).convert("RGB")
      return transform(image), 0

  loader = torch.utils.data.DataLoader(
    Images(),
    batch_size=_BATCH,
    shuffle=True,
    num_workers=len(os.sched_getaffinity(0)),
    collate_fn=fast_collate,
    persistent_workers=True,
  )

  def forever():
    while True:
      yield from loader

  batches = forever()

  def take():
    for _ in range(len(loader)):
      next(batches)

  return take


if __name__ == "__main__":
  import json
  import sys

  import timm
  import torch

  from benchmarks import jpegs
  from benchmarks.lockstep import serve

  job = json.loads(sys.argv[1])
  images = jpegs.read(job["images"], job["count"], at_least=1)
  takers = make_takers(images, job["size"], job["layers"], job["magnitude"])
  versions = f"timm {timm.__version__}, torch {torch.__version__}"
  serve(takers, {"versions": versions})
