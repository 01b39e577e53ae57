"""Inference of timm's NFNet on PyTorch, the peer of our SavedModels.

Run by `benchmarks.serving` in an interpreter that has timm; TensorFlow is not
imported. It takes normalized images.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence


def make_calls(
  variant: str,
  size: int,
  batches: Sequence[int],
  dtypes: Sequence[str],
  layouts: Sequence[str],
) -> tuple[dict[str, Callable[[], object]], dict]:
  """Returns ({"BATCH DTYPE LAYOUT": a function that runs a batch}, facts).

  Args:
    variant: of the network, "F0" to "F6".
    size: height and width of the images, in pixels.
    batches: images in a call.
    dtypes: of weights and images, "float32" or "bfloat16".
    layouts: PyTorch's memory formats, such as "channels_last".
  """
  import timm
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)

  def call(batch, dtype, layout):
    options = {
      "dtype": getattr(torch, dtype),
      "memory_format": getattr(torch, layout),
    }
    name = f"dm_nfnet_{variant.lower()}"
    model = timm.create_model(name, pretrained=False).eval().to(**options)
    images = torch.randn(batch, 3, size, size).to(**options)

    def run():
      with torch.inference_mode():
        return model(images).float().numpy()

    return run

  calls = {
    f"{batch} {dtype} {layout}": call(batch, dtype, layout)
    for batch, dtype, layout in itertools.product(batches, dtypes, layouts)
  }
  versions = f"timm {timm.__version__}, torch {torch.__version__}"
  return calls, {"versions": versions}


if __name__ == "__main__":
  import json
  import sys

  from benchmarks.lockstep import serve

  serve(*make_calls(**json.loads(sys.argv[1])))
