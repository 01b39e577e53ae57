"""A few held-out images, to try with what was trained."""

from __future__ import annotations

import numpy as np

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.data.pipeline import Split

_BATCH = 64


def heldout_sample(
  split: Split, index: SplitInfo, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first images of a split, preprocessed, and their labels.

  Args:
    split: of the held-out data.
    index: what it holds.
    count: how many are read at most; those that cannot be used are left out.

  Returns:
    uint8 [images, height, width, 3] and integers [images].
  """
  count = min(count, index.num_examples)
  size = min(count, _BATCH)
  batches = split.evaluation_batches(index, host_batch=size, replicas=1)
  parts = list(batches.take(-(-count // size)).as_numpy_iterator())
  images, labels, weights = (
    np.concatenate(part)[:count] for part in zip(*parts)
  )
  return images[weights > 0], labels[weights > 0]
