"""The analytic variance of the signal through an NFNet, in plain Python."""

import math
from collections.abc import Sequence


def input_scales(depths: Sequence[int], *, alpha: float) -> list[float]:
  """Returns beta, the input scale of every residual block in order.

  beta = 1 / expected standard deviation at the block's input (Brock et al.
  2021, section 3). A block adds variance alpha^2; the first block of a stage
  still sees what the stage before accumulated, and its own shortcut, taken
  after the scaling, resets the variance to 1.

  Args:
    depths: number of blocks in each stage.
    alpha: scale of the residual branch.
  """
  scales, std = [], 1.0
  for depth in depths:
    for index in range(depth):
      scales.append(1.0 / std)
      if index == 0:
        std = 1.0
      std = math.sqrt(std**2 + alpha**2)
  return scales
