"""What the optimizer may do to a variable, marked where it is created.

AGC exempts the classifier's kernel alone, and weight decay applies to kernels
alone. Neither is decided by matching names: a layer marks its variable, and a
variable without a mark (of a user's own layer) is a kernel if it has two axes
or more.
"""

import enum

import tensorflow as tf

_MARK = "_nfnets_role"
_RATE = "_nfnets_rate"


class Role(enum.Enum):
  """The treatment of a variable: clipped by AGC, decayed, or both."""

  KERNEL = "kernel"  # clipped and decayed
  HEAD_KERNEL = "head_kernel"  # decayed only
  VECTOR = "vector"  # clipped only: gains, biases, skip gains

  @property
  def clipped(self) -> bool:
    """Whether AGC applies."""
    return self is not Role.HEAD_KERNEL

  @property
  def decayed(self) -> bool:
    """Whether weight decay applies."""
    return self is not Role.VECTOR


def mark(variable: tf.Variable, role: Role) -> tf.Variable:
  """Marks `variable` and returns it."""
  setattr(variable, _MARK, role)
  return variable


def role_of(variable: tf.Variable) -> Role:
  """Returns the variable's mark, or what its rank says where it has none."""
  by_rank = Role.KERNEL if variable.shape.rank >= 2 else Role.VECTOR
  return getattr(variable, _MARK, by_rank)


def mark_rate(variable: tf.Variable, factor: float) -> tf.Variable:
  """Marks `variable` to learn at `factor` times the rate; returns it."""
  setattr(variable, _RATE, factor)
  return variable


def rate_of(variable: tf.Variable) -> float:
  """Returns the factor on the variable's learning rate, 1 if none is marked."""
  return getattr(variable, _RATE, 1.0)
