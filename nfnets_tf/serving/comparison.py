"""What an export changed: its answers on real images, its size, its speed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np

_BATCH = 8
_ROUNDS, _ENOUGH_SECONDS = 7, 2.0


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one form of a network says about some images.

  Attributes:
    name: of the form.
    logits: float32 [images, classes].
    seconds: median time of an image by itself.
    num_bytes: of its weights or its file.
  """

  name: str
  logits: np.ndarray
  seconds: float
  num_bytes: int

  def of(self, images: slice) -> Answers:
    """Returns the answers on some of the images."""
    return dataclasses.replace(self, logits=self.logits[images])


def ask(
  name: str,
  call: Callable[[np.ndarray], np.ndarray],
  images: np.ndarray,
  num_bytes: int,
) -> Answers:
  """Calls a form of a network on images, then times it on one at a time.

  Args:
    name: of the form.
    call: maps images [batch, height, width, 3] to logits.
    images: [images, height, width, 3].
    num_bytes: of its weights or its file.
  """
  batches = range(0, len(images), _BATCH)
  logits = [np.asarray(call(images[i : i + _BATCH])) for i in batches]
  call(images[:1])  # compiles
  taken = []
  while len(taken) < _ROUNDS and sum(taken) < _ENOUGH_SECONDS:
    start = time.perf_counter()
    call(images[:1])
    taken.append(time.perf_counter() - start)
  return Answers(
    name, np.concatenate(logits), statistics.median(taken), num_bytes
  )


def largest_difference(answers: Answers, reference: Answers) -> float:
  """Returns the largest difference of a logit, relative to the largest one."""
  difference = np.abs(answers.logits - reference.logits).max()
  return float(difference / np.abs(reference.logits).max())


def top1(answers: Answers, labels: np.ndarray) -> float:
  """Returns the share of images whose most likely class is their label."""
  return float(np.mean(answers.logits.argmax(-1) == labels))


def describe(
  answers: Answers, reference: Answers, labels: np.ndarray | None
) -> str:
  """Returns in a line how a form differs from the network in training."""
  count = len(reference.logits)
  same = np.sum(answers.logits.argmax(-1) == reference.logits.argmax(-1))
  parts = [
    f"differs by {largest_difference(answers, reference):.1e} of the largest"
    f" logit at most, same class for {same:,} of {count:,} images"
  ]
  if labels is not None:
    parts.append(
      f"top-1 {top1(answers, labels):.2%} (before:"
      f" {top1(reference, labels):.2%})"
    )
  parts += [
    f"{answers.num_bytes / 1e6:,.1f} MB (before:"
    f" {reference.num_bytes / 1e6:,.1f})",
    f"{answers.seconds * 1e3:,.1f} ms an image (before:"
    f" {reference.seconds * 1e3:,.1f})",
  ]
  return f"{answers.name}: {'; '.join(parts)}"
