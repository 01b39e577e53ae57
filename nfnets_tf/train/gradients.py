"""The gradient of one step: micro-batches, and SAM's two passes.

Everything here happens in a replica context, on the replica's share of the
batch, and leaves the weights as they were. What replicas do together stands
outside every branch, since `merge_call` cannot be inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.ops import draws
from nfnets_tf.ops.errors import UserError
from nfnets_tf.optim import sam
from nfnets_tf.train.findings import COLUMNS, Findings, from_table, to_table

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


def check_parts(examples: int, micro_batches: int) -> None:
  """Raises a UserError unless a replica's batch divides into equal parts."""
  if not isinstance(micro_batches, int) or micro_batches < 1:
    raise UserError(
      f"Classifier.micro_batches = {micro_batches!r} cannot be used; bind it to"
      " a whole number of at least 1."
    )
  if examples % micro_batches:
    raise UserError(
      f"{examples} examples a replica do not divide into {micro_batches}"
      " micro-batches; choose another batch size or number, and"
      " drop_remainder=True where a data set is batched."
    )


class Share:
  """A replica's share of the batch, and the passes over its parts.

  Args:
    evaluate: maps a part of `data` to (weighted losses [examples], `Findings`).
    variables: the weights that gradients are taken for.
    data: tensors with the same number of examples.
    seed: of the step's draws on this replica, integers [2].
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
    self._replicas = replicas
    self._parts = micro_batches
    self._examples = data[0].shape[0] or tf.shape(data[0])[0]
    if isinstance(self._examples, int):
      check_parts(self._examples, micro_batches)
    self._part_size = -(-self._examples // micro_batches)

  def plain(self) -> StepGradient:
    """Returns the gradient at the weights."""
    gradients, (table,) = self._summed(self._one_pass, [self._part_size])
    return StepGradient(gradients, from_table(table), None, None)

  def sharpness_aware(
    self, how: sam.SAM, active: tf.Tensor | None
  ) -> StepGradient:
    """Returns the gradient at weights that are perturbed as `how` says.

    Args:
      how: which perturbation.
      active: whether this step is perturbed, a scalar bool; None is always.
    """
    size = self._part_size
    few = how.ascent_examples(size)

    def ascent(start, size):
      return self._one_pass(start, how.ascent_examples(size))

    if how.scope == "micro_batch":

      def both(start, size):
        first = self._if(active, few, lambda: ascent(start, size))
        return self._sharp(how, first, lambda: self._one_pass(start, size))

      gradients, tables = self._summed(both, [few, size])
    else:
      gradients, tables = self._sharp(
        how,
        self._if(
          active, few * self._parts, lambda: self._summed(ascent, [few])
        ),
        lambda: self._summed(self._one_pass, [size]),
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
    part = [_cut(tensor, start, size) for tensor in self._data]
    step = draws.using(self._seed, start=start, whole=self._examples)
    with tf.GradientTape() as tape, step:
      losses, findings = self._evaluate(*part)
      whole = tf.cast(self._examples * self._replicas, losses.dtype)
      loss = tf.reduce_sum(losses) / whole
    gradients = tape.gradient(
      loss, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return gradients, (to_table(findings),)

  def _summed(self, take: Pass, rows):
    """Sums the gradients of all parts and joins their tables.

    Args:
      take: maps (start, size) to (gradients, tables).
      rows: of each table of a part.
    """
    size, parts = self._part_size, self._parts
    if parts == 1:
      return take(0, size)

    def body(index, total, arrays):
      start, part = index * size, size
      if not isinstance(size, int):  # then the last part may be smaller
        part = tf.clip_by_value(self._examples - start, 0, size)
      gradients, tables = take(start, part)
      total = [a + b for a, b in zip(total, gradients)]
      arrays = [a.write(index, t) for a, t in zip(arrays, tables)]
      return index + 1, total, arrays

    def array(count):
      shape = [count if isinstance(count, int) else None, COLUMNS]
      return tf.TensorArray(
        tf.float32, parts, infer_shape=False, element_shape=shape
      )

    arrays = [array(count) for count in rows]
    zeros = [tf.zeros(v.shape, v.dtype) for v in self._variables]
    _, gradients, arrays = tf.while_loop(
      lambda index, *_: index < parts,
      body,
      (tf.constant(0), zeros, arrays),
      parallel_iterations=1,  # one part's activations at a time
      maximum_iterations=parts,
    )
    return gradients, tuple(array.concat() for array in arrays)


def _cut(tensor: tf.Tensor, start, size) -> tf.Tensor:
  """Returns `size` examples from `start` on, of a known shape if it can be."""
  begin = [start] + [0] * (tensor.shape.rank - 1)
  shape = tf.concat([[size], tf.shape(tensor)[1:]], axis=0)
  known = size if isinstance(size, int) else None
  return tf.ensure_shape(
    tf.slice(tensor, begin, shape), [known, *tensor.shape[1:]]
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
