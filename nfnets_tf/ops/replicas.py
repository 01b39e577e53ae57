"""Writes to one replica's copy of a variable."""

import tensorflow as tf


def assign_here(variable: tf.Variable, value: tf.Tensor) -> None:
  """Assigns to this replica's copy alone, in a replica context.

  `Variable.assign` would reduce the value over replicas, and inside of
  `tf.cond` it is not allowed.

  Args:
    variable: of any shape, mirrored or not.
    value: of its shape and dtype, the same on all replicas if the copies are to
      stay equal.
  """
  # A handle belongs to one replica.
  tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
