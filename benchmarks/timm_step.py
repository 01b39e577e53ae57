"""A training step of timm's NFNet on PyTorch, the peer of our own.

Run by `benchmarks.training_step` in an interpreter that has timm; TensorFlow is
not imported. As complete as ours: timm's AGC without the classifier, Nesterov
momentum, weight decay, the average of the weights, smoothed cross-entropy, and
the fastest form of each that timm and PyTorch have (channels_last, foreach).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

CLIPPING, LEARNING_RATE, MOMENTUM, DECAY = 0.01, 0.1, 0.9, 2e-5


def make_step(
  variant: str, dtype: str, batch: int, size: int, *, compiled: bool
) -> tuple[Callable[[], object], dict]:
  """Returns (a function that runs one step, facts about it).

  Args:
    variant: of the network, "F0" to "F6".
    dtype: of the computation, "float32" or "bfloat16"; weights are float32.
    batch: images in a step.
    size: height and width of the images, in pixels.
    compiled: whether `torch.compile` compiles the network.
  """
  import timm
  import torch
  from timm.utils import ModelEmaV3, adaptive_clip_grad

  start = time.perf_counter()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  layout = torch.channels_last
  model = timm.create_model(f"dm_nfnet_{variant.lower()}", num_classes=1000)
  model = model.to(memory_format=layout).train()
  head = {id(p) for p in model.get_classifier().parameters() if p.ndim > 1}
  clipped = [p for p in model.parameters() if id(p) not in head]
  kernels = [p for p in model.parameters() if p.ndim > 1 and p.shape[0] > 1]
  others = [p for p in model.parameters() if all(p is not k for k in kernels)]
  optimizer = torch.optim.SGD(
    [
      {"params": kernels, "weight_decay": DECAY},
      {"params": others, "weight_decay": 0.0},
    ],
    lr=LEARNING_RATE,
    momentum=MOMENTUM,
    nesterov=True,
    foreach=True,
  )
  average = ModelEmaV3(model, decay=0.99999, foreach=True)
  loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
  network = torch.compile(model) if compiled else model
  images = torch.randn(batch, 3, size, size).to(memory_format=layout)
  labels = torch.zeros(batch, dtype=torch.long)
  autocast = torch.autocast(
    "cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"
  )

  def step():
    optimizer.zero_grad(set_to_none=True)
    with autocast:
      logits = network(images)
    loss = loss_of(logits.float(), labels)
    loss.backward()
    adaptive_clip_grad(clipped, CLIPPING)
    optimizer.step()
    average.update(model)
    return loss.item()

  step()
  seconds = time.perf_counter() - start
  versions = f"timm {timm.__version__}, torch {torch.__version__}"
  return step, {"versions": versions, "first_step_seconds": seconds}


if __name__ == "__main__":
  import json
  import sys

  from benchmarks.lockstep import serve

  job = json.loads(sys.argv[1])
  step, facts = make_step(**job)
  serve({"step": step}, facts)
