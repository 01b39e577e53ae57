"""Gradients of one training step: micro-batches, SAM's passes, the guard.

All run in a replica context, on its examples, and leave the weights unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.ops import stateless_random
from nfnets_tf.ops.finite import all_finite
from nfnets_tf.optim import sam as sam_passes
from nfnets_tf.optim.param_groups import GroupedOptimizer
from nfnets_tf.optim.sam import SAM
from nfnets_tf.ranges import COUNT
from nfnets_tf.train.metrics import (
  NUM_EXAMPLE_METRICS,
  ExampleMetrics,
  mean_over_valid,
  packed_array,
)

# (gradients, packed metrics [examples, NUM_EXAMPLE_METRICS] of each forward
# pass): tensors, since tf.while_loop and tf.cond carry nothing else.
_Pass = tuple[list[tf.Tensor], tuple[tf.Tensor, ...]]


class StepGradient(NamedTuple):
  """The result of one step's passes on a replica.

  Attributes:
    gradients: parallel to the weights, each of its weight's shape; their sum
      over replicas is the gradient of the loss' sum over the global batch,
      divided by the number of all its examples, those of weight 0 included.
    clean: metrics of the examples at the weights themselves.
    perturbed: metrics at the perturbed weights, all of weight 0 in a step that
      SAM does not perturb; None without SAM.
    sam_active: 1.0 if SAM perturbed the weights, else 0.0, a float32 scalar;
      None without SAM.
  """

  gradients: list[tf.Tensor]
  clean: ExampleMetrics
  perturbed: ExampleMetrics | None
  sam_active: tf.Tensor | None


class ReplicaBatch:
  """A replica's examples of one step, and the gradient that they give.

  Args:
    compute_losses: maps slices of the tensors in `data` to (losses multiplied
      by example weights, float32 [examples], `ExampleMetrics`).
    variables: the trainable weights.
    data: images [examples, height, width, 3], labels (a tensor or a structure
      of tensors [examples, ...]), and optionally weights [examples].
    seed: of the step's dropout and stochastic depth, int32 [2], the same on all
      replicas.
    replicas: number of replicas in sync.
    micro_batches: number of equal parts that are computed one after the other.

  Raises:
    UserError: if the examples do not divide into the micro-batches.
  """

  def __init__(
    self,
    compute_losses: Callable[..., tuple[tf.Tensor, ExampleMetrics]],
    variables: Sequence[tf.Variable],
    data: Sequence[tf.Tensor],
    *,
    seed: tf.Tensor,
    replicas: int,
    micro_batches: int,
  ):
    self._compute_losses = compute_losses
    self._variables = variables
    self._data = data
    self._seed = seed
    self._examples = data[0].shape[0] or tf.shape(data[0])[0]
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    if isinstance(self._examples, int):
      check_micro_batches(self._examples, micro_batches)
      self._size = self._examples // micro_batches
      self._global_size = self._examples * replicas
      self._first = self._examples * replica
    else:
      # The last batch of a dataset: smaller, and unlike on each replica.
      self._first, self._global_size = locate_in_global_batch(
        self._examples, replicas
      )
      self._data, self._examples = pad_if_empty(data, self._examples)
      self._size = -(-self._examples // micro_batches)
    self._micro_batches = micro_batches

  def gradient(self, sam: SAM | None, step: tf.Tensor) -> StepGradient:
    """Computes the gradient of a step.

    Args:
      sam: the perturbation; None computes the plain gradient.
      step: number of the step, an integer scalar.
    """
    if sam is None:
      gradients, (packed,) = self._accumulate(self._one_pass, self._examples)
      return StepGradient(gradients, ExampleMetrics.unpack(packed), None, None)
    active = sam.active_at(step)
    if sam.scope == "micro_batch":
      gradients, packed = self._perturb_each_micro_batch(sam, active)
    else:
      gradients, packed = self._perturb_whole(sam, active)
    return _perturbed_step(gradients, *packed, active)

  def _perturb_each_micro_batch(self, sam, active) -> _Pass:
    def both_passes(start, size):
      rows = sam.ascent_examples(size)
      ascent = self._if_active(
        active, rows, lambda: self._one_pass(start, rows)
      )
      return self._perturb(sam, ascent, lambda: self._one_pass(start, size))

    ascent_rows = sam.ascent_examples(self._size)
    return self._accumulate(
      both_passes, self._examples, ascent_rows=ascent_rows
    )

  def _perturb_whole(self, sam, active) -> _Pass:
    ascent_size = sam.ascent_examples(self._examples)
    count, size = self._micro_batches_of(ascent_size)
    ascent = self._if_active(
      active,
      count * size,
      lambda: self._accumulate(self._one_pass, ascent_size),
    )
    return self._perturb(
      sam, ascent, lambda: self._accumulate(self._one_pass, self._examples)
    )

  def _if_active(self, active, rows, compute: Callable[[], _Pass]) -> _Pass:
    """Returns compute(), or zeros and `rows` packed zeros if not active."""
    if active is None:
      return compute()

    def skip():
      gradients = [tf.zeros(v.shape, v.dtype) for v in self._variables]
      return gradients, (tf.zeros([rows, NUM_EXAMPLE_METRICS]),)

    # The all-reduce of a global perturbation stays outside of this branch:
    # `merge_call` is forbidden inside `tf.cond`.
    return tf.cond(active, compute, skip)

  def _perturb(self, sam, ascent: _Pass, descend: Callable[[], _Pass]) -> _Pass:
    """Runs `descend` at the weights that the ascent's gradient leads to."""
    gradients, (clean,) = ascent
    if sam.scope == "global":
      context = tf.distribute.get_replica_context()
      gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    weights = sam.perturb(self._variables, gradients)
    gradients, (perturbed,) = descend()
    sam_passes.restore(self._variables, weights)
    return gradients, (clean, perturbed)

  def _one_pass(self, start, size) -> _Pass:
    """Computes what `size` examples add to the global batch's mean loss."""
    data = tf.nest.map_structure(
      lambda tensor: slice_examples(tensor, start, size), self._data
    )
    seeded = stateless_random.seed_scope(
      self._seed,
      first_example=self._first + start,
      batch_size=self._global_size,
    )
    with tf.GradientTape() as tape, seeded:
      losses, metrics = self._compute_losses(*data)
      loss = tf.reduce_sum(losses) / tf.cast(self._global_size, losses.dtype)
    gradients = tape.gradient(
      loss, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return gradients, (metrics.pack(),)

  def _micro_batches_of(self, examples):
    """Returns (number, size) of micro-batches for the first `examples`.

    Micro-batches of a static size are all equal, so their number times their
    size may differ from `examples` by a few.
    """
    if self._micro_batches == 1:
      return 1, examples
    count = -(-examples // self._size)
    if isinstance(examples, int):
      return count, round(examples / count)
    return count, -(-examples // count)

  def _accumulate(
    self, compute: Callable[..., _Pass], examples, *, ascent_rows=None
  ) -> _Pass:
    """Sums gradients over micro-batches and concatenates their metrics.

    Args:
      compute: maps (start, size) of a micro-batch to its pass.
      examples: how many to take, from the first one on.
      ascent_rows: rows of the first of two packed metrics per micro-batch;
        None if `compute` returns only one.
    """
    count, size = self._micro_batches_of(examples)
    if isinstance(count, int) and count == 1:
      return compute(0, size)

    def body(index, total, arrays):
      start, actual_size = index * size, size
      if not isinstance(size, int):  # the last micro-batch may be smaller
        actual_size = tf.clip_by_value(examples - start, 0, size)
      gradients, packed = compute(start, actual_size)
      total = [a + b for a, b in zip(total, gradients)]
      arrays = [a.write(index, rows) for a, rows in zip(arrays, packed)]
      return index + 1, total, arrays

    rows = [size] if ascent_rows is None else [ascent_rows, size]
    arrays = [packed_array(count, n) for n in rows]
    zeros = [tf.zeros(v.shape, v.dtype) for v in self._variables]
    _, gradients, arrays = tf.while_loop(
      lambda index, *_: index < count,
      body,
      (tf.constant(0), zeros, arrays),
      parallel_iterations=1,  # hold one micro-batch's activations at a time
      maximum_iterations=count,
    )
    # XLA needs static shapes, which `concat` does not infer.
    static = isinstance(count, int) and isinstance(size, int)
    return gradients, tuple(
      tf.ensure_shape(
        array.concat(), [n * count if static else None, NUM_EXAMPLE_METRICS]
      )
      for array, n in zip(arrays, rows)
    )


def _perturbed_step(gradients, ascent, descent, active) -> StepGradient:
  """Sorts the packed metrics of SAM's two passes into clean and perturbed."""
  clean, perturbed = map(ExampleMetrics.unpack, (ascent, descent))
  if active is None:
    return StepGradient(gradients, clean, perturbed, tf.constant(1.0))
  # In a step without ascent the second pass is at the weights themselves, and
  # the first pass' rows are zeros, of weight 0.
  active = tf.cast(active, tf.float32)
  plain = perturbed._replace(weights=(1.0 - active) * perturbed.weights)
  clean = ExampleMetrics(
    *(tf.concat(pair, axis=0) for pair in zip(clean, plain))
  )
  perturbed = perturbed._replace(weights=active * perturbed.weights)
  return StepGradient(gradients, clean, perturbed, active)


class NonfiniteGuard:
  """Decides on all replicas alike whether a step is skipped.

  Branch-free: TensorFlow forbids `merge_call` inside `tf.cond`. To be created
  under the strategy's scope.

  Args:
    optimizer: sums the gradients over replicas. `nfnets_tf.SGD` skips a
      non-finite step itself, momentum included; any other optimizer receives a
      gradient of zeros, under which its own state still moves.

  Attributes:
    consecutive_skips: steps skipped since the last finite one, an int64 scalar.
  """

  def __init__(self, optimizer: keras.optimizers.Optimizer):
    self._optimizer = optimizer
    self._zeroes = not (
      isinstance(optimizer, GroupedOptimizer) and optimizer.skips_nonfinite
    )
    self.consecutive_skips = tf.Variable(
      0,
      trainable=False,
      dtype=tf.int64,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="consecutive_skips",
    )

  def reduce_gradients(
    self,
    gradients: Sequence[tf.Tensor],
    losses: Sequence[tf.Tensor],
    variables: Sequence[tf.Variable],
    counts: tf.Tensor | None = None,
  ) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Sums gradients over replicas and counts the step if it is skipped.

    Args:
      gradients: each of the shape of its variable.
      losses: of this replica's examples, float [examples] for each pass.
      variables: the trainable weights, parallel to `gradients`.
      counts: this replica's, from `count_examples`: the gradients become those
        of the mean over the examples that count. None if all do.

    Returns:
      (summed gradients, whether all gradients and losses are finite, a scalar
      bool), the same on all replicas.
    """
    gradients = list(gradients)
    # A NaN added to the smallest gradient carries a bad loss to all replicas
    # with the sum that is made anyway.
    smallest = min(
      range(len(gradients)), key=lambda i: gradients[i].shape.num_elements()
    )
    poison = tf.where(all_finite(losses), 0.0, float("nan"))
    gradients[smallest] += tf.cast(poison, gradients[smallest].dtype)
    pairs = list(zip(gradients, variables))
    if counts is not None:  # it travels with them, beside any variable
      pairs.append((counts, variables[smallest]))
    gradients = [x for x, _ in self._optimizer.aggregate_gradients(pairs)]
    if counts is not None:
      gradients = mean_over_valid(gradients[:-1], gradients[-1])
    finite = all_finite(gradients)
    skips = self.consecutive_skips.read_value() + 1
    self.consecutive_skips.assign(tf.where(finite, tf.zeros_like(skips), skips))
    if self._zeroes:
      gradients = [tf.where(finite, g, tf.zeros_like(g)) for g in gradients]
    return gradients, finite


def check_micro_batches(examples: int, micro_batches: int) -> None:
  """Raises a UserError unless a replica's batch divides equally."""
  COUNT.check("Classifier.micro_batches", micro_batches)
  if examples % micro_batches:
    raise UserError(
      f"{examples} examples per replica do not divide into {micro_batches}"
      " micro-batches; choose another batch size or number, and"
      " drop_remainder=True where a dataset is batched."
    )


def locate_in_global_batch(
  examples: tf.Tensor, replicas: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Locates a replica's examples in an unevenly distributed global batch.

  Args:
    examples: number of this replica's examples, an int32 scalar.
    replicas: number of replicas in sync.

  Returns:
    (index of the replica's first example, size of the global batch), int32
    scalars. The index is within the batch even if the replica has none.
  """
  context = tf.distribute.get_replica_context()
  replica = context.replica_id_in_sync_group
  local = tf.one_hot(replica, replicas, dtype=tf.int32) * examples
  sizes = context.all_reduce(tf.distribute.ReduceOp.SUM, local)
  global_size = tf.maximum(tf.reduce_sum(sizes), 1)
  first = tf.math.cumsum(sizes, exclusive=True)[replica]
  return tf.minimum(first, global_size - 1), global_size


def pad_if_empty(
  data: Sequence[tf.Tensor], examples: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
  """Gives a replica without examples one of weight 0.

  TensorFlow's convolutions on a CPU fail on an empty batch.

  Args:
    data: images, labels and optionally weights, [examples, ...] each.
    examples: how many there are, an int32 scalar.

  Returns:
    ([images, labels, weights], number of examples, at least 1).
  """
  weights = data[2] if len(data) > 2 else tf.ones([examples])
  missing = tf.maximum(1 - examples, 0)

  def pad(tensor):
    padding = [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)
    return tf.pad(tensor, padding)

  padded = tf.nest.map_structure(pad, [*data[:2], weights])
  return padded, examples + missing


def slice_examples(tensor: tf.Tensor, start, size) -> tf.Tensor:
  """Returns `size` examples of [examples, ...] from number `start` on.

  Args:
    tensor: [examples, ...].
    start: an integer or an integer scalar tensor.
    size: likewise; an integer makes the shape static, as XLA needs it.
  """
  begin = [start] + [0] * (tensor.shape.rank - 1)
  shape = tf.concat([[size], tf.shape(tensor)[1:]], axis=0)
  static = size if isinstance(size, int) else None
  return tf.ensure_shape(
    tf.slice(tensor, begin, shape), [static, *tensor.shape[1:]]
  )
