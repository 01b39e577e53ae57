"""A genuine TPUStrategy over replicas that do not exist.

What is written for `tf.distribute.TPUStrategy` can be traced under it on any
machine, as the program of one replica. A strategy asks for its devices, and
places operations in three ways that need a TPU; those four are replaced:

  the cluster      one CPU device, called the cores of `replicas` devices
  tpu.replicate    the program of one replica, whose number stays symbolic
  variables        the one copy that the CPU holds stands for all copies
  collectives      CrossReplicaSum and AllToAll become XlaAllReduce, which
                   TensorFlow can lower without its TPU library
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import tpu_strategy, tpu_util
from tensorflow.python.tpu import tpu_function, tpu_system_metadata
from tensorflow.python.tpu.ops import tpu_ops

from nfnets_tf.errors import UserError

_VERSION = (2, 20)
_DEVICE = "/job:localhost/replica:0/task:0/device:CPU:0"


class AllReduce(NamedTuple):
  """A sum over replicas in the traced program.

  Attributes:
    dtype: name of the type of its elements.
    shape: of the summed tensor.
  """

  dtype: str
  shape: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    """Bytes that every replica contributes."""
    return math.prod(self.shape) * tf.as_dtype(self.dtype).size


class PretendedTPU(NamedTuple):
  """A strategy, and what was traced under it.

  Attributes:
    strategy: a `tf.distribute.TPUStrategy`.
    all_reduces: grows with every sum over replicas that is traced.
  """

  strategy: tf.distribute.TPUStrategy
  all_reduces: list[AllReduce]


def check_tensorflow() -> None:
  """Raises a UserError under a TensorFlow whose interfaces differ."""
  version = tuple(map(int, tf.__version__.split(".")[:2]))
  if version != _VERSION:
    raise UserError(
      f"TensorFlow {tf.__version__} cannot lower a step for a TPU without one;"
      " expected TensorFlow 2.20: install requirements/tensorflow-2.20.txt in"
      " an environment of its own."
    )


@contextlib.contextmanager
def pretended_tpu(replicas: int) -> Iterator[PretendedTPU]:
  """Makes a strategy; variables are made and steps traced within the `with`.

  Args:
    replicas: number of devices, each of which is a replica.

  Raises:
    UserError: under another TensorFlow than 2.20.
  """
  check_tensorflow()
  tracing = _Tracing(replicas)
  with contextlib.ExitStack() as stack:
    for owner, name, value in (
      (tpu_strategy.tpu, "replicate", tracing.replicate),
      (tpu_util, "enclosing_tpu_context", tracing.enclosing_context),
      (tpu_ops, "cross_replica_sum", tracing.cross_replica_sum),
      (tpu_ops, "all_to_all", tracing.all_to_all),
    ):
      stack.enter_context(mock.patch.object(owner, name, value))
    strategy = tf.distribute.TPUStrategy(_Cluster(replicas))
    # Packed variables are handles of several devices at once.
    strategy._enable_packed_variable_in_eager_mode = False
    yield PretendedTPU(strategy, tracing.all_reduces)


class _DeviceName(str):
  """The name of a CPU device that passes for that of a TPU."""

  def __contains__(self, text):
    return text == "device:TPU:" or super().__contains__(text)


class _Device(NamedTuple):
  name: str
  device_type: str = "TPU"


class _Cluster(tf.distribute.cluster_resolver.ClusterResolver):
  """A host whose one device stands for all: no variable has a second copy."""

  def __init__(self, replicas: int):
    self._replicas = replicas

  def get_tpu_system_metadata(self):
    return tpu_system_metadata.TPUSystemMetadata(
      num_cores=self._replicas,
      num_hosts=1,
      num_of_cores_per_host=self._replicas,
      topology=None,
      devices=(_Device(_DeviceName(_DEVICE)),),
    )

  def cluster_spec(self):
    return tf.train.ClusterSpec({})

  def master(self, *args, **kwargs):
    return ""

  def num_accelerators(self, *args, **kwargs):
    return {"TPU": self._replicas}


class _ReplicaContext:
  """What TPUReplicateContext gives a variable: the handle of its copy."""

  def get_replicated_var_handle(self, name, handle_id, copies, *flags):
    del name, handle_id, flags
    return copies[0].handle


class _Tracing:
  """Replaces what TPUStrategy calls while it traces."""

  def __init__(self, replicas: int):
    self._replicas = replicas
    self._context = None
    self.all_reduces = []

  def enclosing_context(self):
    return self._context

  def replicate(self, computation, inputs, **options):
    del options
    if self._context is not None:
      raise RuntimeError("a step of replicas runs within another one")
    self._context = _ReplicaContext()
    try:
      with tpu_function.tpu_shard_context(self._replicas):
        # A constant would make the program that of the first replica alone.
        outputs = computation(gen_xla_ops.xla_replica_id(), *inputs[0][1:])
    finally:
      self._context = None
    flat = [x for x in tf.nest.flatten(outputs) if x is not None]
    return [flat] * self._replicas

  def cross_replica_sum(self, x, group_assignment=None, name=None):
    del name
    x = tf.convert_to_tensor(x)
    if group_assignment is None:
      group_assignment = [list(range(self._replicas))]
    self.all_reduces.append(AllReduce(x.dtype.name, tuple(x.shape)))
    if x.dtype == tf.int64:  # counters: XlaAllReduce has no 64 bits
      narrow = self._sum(tf.cast(x, tf.int32), group_assignment)
      return tf.cast(narrow, tf.int64)
    return self._sum(x, group_assignment)

  def all_to_all(self, x, *, concat_dimension, split_dimension, split_count):
    # TPUStrategy broadcasts the first replica's value so, and uses only what
    # that one has sent.
    if (concat_dimension, split_dimension, split_count) != (
      0,
      0,
      self._replicas,
    ):
      raise NotImplementedError("an AllToAll other than a broadcast")
    sent = tf.convert_to_tensor(x[0])
    is_first = tf.equal(gen_xla_ops.xla_replica_id(), 0)
    return [
      self.cross_replica_sum(tf.where(is_first, sent, tf.zeros_like(sent)))
    ]

  def _sum(self, x, group_assignment):
    return gen_xla_ops.xla_all_reduce(
      input=x,
      group_assignment=tf.constant(group_assignment, tf.int32),
      reduce_op="Add",
      mode="CrossReplica",
    )
