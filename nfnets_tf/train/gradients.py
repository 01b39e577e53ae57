"""The gradient of one step: micro-batches, and SAM's two passes.

Everything here happens in a replica context, on the replica's share of the
batch, and leaves the weights as they were. What replicas do together stands
outside every branch, since `merge_call` cannot be inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.ops import stateless_random
from nfnets_tf.optim import sam
from nfnets_tf.train.findings import COLUMNS, Findings, from_table, to_table
from nfnets_tf.train.shares import (
  check_parts,
  cut,
  never_empty,
  place_in_batch,
)

# A pass returns (gradients, tables of findings).
Pass = Callable[..., tuple[list[tf.Tensor], tuple[tf.Tensor, ...]]]


class StepGradient(NamedTuple):
  """The outcome of one step's passes on a replica.

  Attributes:
    gradients: parallel to the weights; their sum over replicas is the gradient
      of the mean loss of the global batch.
    clean: findings at the weights themselves.
    perturbed: findings at the perturbed weights, None without SAM; all of
      weight 0 in a step that SAM leaves out.
    active: 1.0 if SAM perturbed the weights, else 0.0; None without SAM.
  """

  gradients: list[tf.Tensor]
  clean: Findings
  perturbed: Findings | None
  active: tf.Tensor | None


class Share:
  """A replica's share of the batch, and the passes over its parts.

  Args:
    evaluate: maps a part of `data` to (weighted losses [examples], `Findings`).
    variables: the weights that gradients are taken for.
    data: images, and structures of tensors of as many examples.
    seed: of the step's draws, integers [2], the same on all replicas.
    replicas: how many there are.
    micro_batches: number of equal parts, computed one after the other.

  Raises:
    UserError: if the examples do not divide into the parts.
  """

  def __init__(
    self,
    evaluate: Callable[..., tuple[tf.Tensor, Findings]],
    variables: Sequence[tf.Variable],
    data: Sequence[tf.Tensor],
    *,
    seed: tf.Tensor,
    replicas: int,
    micro_batches: int,
  ):
    self._evaluate = evaluate
    self._variables = variables
    self._data = data
    self._seed = seed
    self._examples = data[0].shape[0] or tf.shape(data[0])[0]
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    if isinstance(self._examples, int):
      check_parts(self._examples, micro_batches)
      self._size = self._examples // micro_batches
      self._whole = self._examples * replicas
      self._first = self._examples * replica
    else:  # the last batch of a data set: smaller, and not alike everywhere
      self._first, self._whole = place_in_batch(self._examples, replicas)
      self._data, self._examples = never_empty(data, self._examples)
      self._size = -(-self._examples // micro_batches)
    self._micro_batches = micro_batches

  def taken(self, how: sam.SAM | None, step: tf.Tensor) -> StepGradient:
    """Returns the gradient of a step as `how` says, None being plain."""
    if how is None:
      return self.plain()
    return self.sharpness_aware(how, how.active_at(step))

  def plain(self) -> StepGradient:
    """Returns the gradient at the weights."""
    gradients, (table,) = self._summed(self._one_pass, self._examples)
    return StepGradient(gradients, from_table(table), None, None)

  def sharpness_aware(
    self, how: sam.SAM, active: tf.Tensor | None
  ) -> StepGradient:
    """Returns the gradient at weights that are perturbed as `how` says.

    Args:
      how: which perturbation.
      active: whether this step is perturbed, a scalar bool; None is always.
    """
    if how.scope == "micro_batch":

      def both(start, size):
        few = how.ascent_examples(size)
        first = self._if(active, few, lambda: self._one_pass(start, few))
        return self._sharp(how, first, lambda: self._one_pass(start, size))

      few = how.ascent_examples(self._size)
      gradients, tables = self._summed(both, self._examples, first_rows=few)
    else:
      few = how.ascent_examples(self._examples)
      parts, size = self._parts_of(few)
      gradients, tables = self._sharp(
        how,
        self._if(
          active, parts * size, lambda: self._summed(self._one_pass, few)
        ),
        lambda: self._summed(self._one_pass, self._examples),
      )
    return _sharp_step(gradients, *tables, active)

  def _if(self, active: tf.Tensor | None, rows, take):
    """Returns take(), or zeros and a table of `rows` zeros if not active."""
    if active is None:
      return take()

    def nothing():
      gradients = [tf.zeros(v.shape, v.dtype) for v in self._variables]
      return gradients, (tf.zeros([rows, COLUMNS]),)

    return tf.cond(active, take, nothing)

  def _sharp(self, how: sam.SAM, first, second):
    gradients, (clean,) = first
    if how.scope == "global":
      context = tf.distribute.get_replica_context()
      gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    kept = how.perturb(self._variables, gradients)
    gradients, (perturbed,) = second()
    sam.restore(self._variables, kept)
    return gradients, (clean, perturbed)

  def _one_pass(self, start, size):
    """Gradient of `size` examples' part of the global batch's mean loss."""
    part = tf.nest.map_structure(lambda x: cut(x, start, size), self._data)
    step = stateless_random.seed_scope(
      self._seed, first_example=self._first + start, batch_size=self._whole
    )
    with tf.GradientTape() as tape, step:
      losses, findings = self._evaluate(*part)
      loss = tf.reduce_sum(losses) / tf.cast(self._whole, losses.dtype)
    gradients = tape.gradient(
      loss, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return gradients, (to_table(findings),)

  def _parts_of(self, examples):
    """Returns (number of parts, examples of each) of the first `examples`.

    Parts that are known beforehand are of one size, so their number times it
    may differ from `examples` by a few.
    """
    if self._micro_batches == 1:
      return 1, examples
    parts = -(-examples // self._size)
    if isinstance(examples, int):
      return parts, round(examples / parts)
    return parts, -(-examples // parts)

  def _summed(self, take: Pass, examples, *, first_rows=None):
    """Sums the gradients of the parts and joins their tables.

    Args:
      take: maps (start, size) to (gradients, tables).
      examples: how many, from the first one on.
      first_rows: of the first of two tables of a part; None is one table.
    """
    parts, size = self._parts_of(examples)
    if isinstance(parts, int) and parts == 1:
      return take(0, size)

    def body(index, total, arrays):
      start, part = index * size, size
      if not isinstance(size, int):  # then the last part may be smaller
        part = tf.clip_by_value(examples - start, 0, size)
      gradients, tables = take(start, part)
      total = [a + b for a, b in zip(total, gradients)]
      arrays = [a.write(index, t) for a, t in zip(arrays, tables)]
      return index + 1, total, arrays

    def array(rows):
      shape = [rows if isinstance(rows, int) else None, COLUMNS]
      return tf.TensorArray(
        tf.float32, parts, infer_shape=False, element_shape=shape
      )

    rows = [size] if first_rows is None else [first_rows, size]
    arrays = [array(count) for count in rows]
    zeros = [tf.zeros(v.shape, v.dtype) for v in self._variables]
    _, gradients, arrays = tf.while_loop(
      lambda index, *_: index < parts,
      body,
      (tf.constant(0), zeros, arrays),
      parallel_iterations=1,  # one part's activations at a time
      maximum_iterations=parts,
    )
    known = isinstance(parts, int) and isinstance(size, int)
    return gradients, tuple(
      tf.ensure_shape(a.concat(), [n * parts if known else None, COLUMNS])
      for a, n in zip(arrays, rows)
    )


def _sharp_step(gradients, first, second, active) -> StepGradient:
  """Sorts the findings of the two passes into clean and perturbed ones."""
  clean, perturbed = from_table(first), from_table(second)
  if active is None:
    return StepGradient(gradients, clean, perturbed, tf.constant(1.0))
  # Where the first pass was left out, the second was not perturbed.
  on = tf.cast(active, tf.float32)
  plain = perturbed._replace(weights=(1.0 - on) * perturbed.weights)
  clean = Findings(*(tf.concat(pair, axis=0) for pair in zip(clean, plain)))
  perturbed = perturbed._replace(weights=on * perturbed.weights)
  return StepGradient(gradients, clean, perturbed, on)
