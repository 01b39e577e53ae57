"""The slices of a TPU-v4 pod: their names, chips and topologies."""

from __future__ import annotations

import dataclasses
import math

from nfnets_tf.errors import UserError

# Chips along each axis, by the number of TensorCores, two a chip, that names
# the slice (cloud.google.com/tpu/docs/v4).
_TOPOLOGIES = {
  8: (2, 2, 1),
  16: (2, 2, 2),
  32: (2, 2, 4),
  64: (2, 4, 4),
  128: (4, 4, 4),
  256: (4, 4, 8),
  512: (4, 8, 8),
  1024: (8, 8, 8),
  2048: (8, 8, 16),
  4096: (8, 16, 16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A part of a TPU-v4 pod.

  Attributes:
    name: such as "v4-16", after its number of TensorCores.
    topology: chips along each axis.
  """

  name: str
  topology: tuple[int, int, int]

  @property
  def chips(self) -> int:
    """Number of chips. A chip is one device, and so one replica (megacore)."""
    return math.prod(self.topology)

  @property
  def is_torus(self) -> bool:
    """Whether the ends of every axis are connected, as from 4x4x4 chips on."""
    return all(size % 4 == 0 for size in self.topology)


SLICES = {
  f"v4-{cores}": Slice(f"v4-{cores}", topology)
  for cores, topology in _TOPOLOGIES.items()
}


def find_slice(name: str) -> Slice:
  """Returns the slice called `name`.

  Raises:
    UserError: if there is none.
  """
  if name not in SLICES:
    raise UserError(
      f"--slice={name} does not exist; expected one of {', '.join(SLICES)}."
    )
  return SLICES[name]
