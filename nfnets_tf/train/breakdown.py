"""What goes wrong around a run while it trains, in one sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from nfnets_tf.errors import RunError, UserError, plain_message
from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.memory import describe_memory

# What TensorFlow raises when a peer is gone depends on who was waiting for it.
_OF_PEERS = (
  tf.errors.UnavailableError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
  tf.errors.FailedPreconditionError,
  tf.errors.InternalError,
)
_PEER = re.compile(
  "[Cc]ollective|worker|task:|heartbeat|peer|[Ss]ocket|onnection"
)
_DISK = re.compile("No space left|[Qq]uota")
_OF_FILES = (tf.errors.NotFoundError, tf.errors.PermissionDeniedError)


@contextlib.contextmanager
def explained(job, strategy: tf.distribute.Strategy) -> Iterator[None]:
  """Turns TensorFlow's errors of memory, peers and files into sentences.

  Args:
    job: the `train.TrainJob`.
    strategy: the devices.

  Raises:
    UserError: if the memory does not suffice.
    RunError: if another worker or a file is gone.
  """
  try:
    yield
  except tf.errors.ResourceExhaustedError as error:
    if _DISK.search(error.message):
      raise RunError(
        f"a file cannot be written ({plain_message(error)}); make room, and the"
        " same command goes on from the last checkpoint."
      ) from error
    raise UserError(_out_of_memory(job, strategy, error)) from error
  except _OF_FILES as error:
    if "OpKernel" in error.message:
      raise  # an operation that a device does not know
    raise RunError(
      f"a file is gone or cannot be read ({plain_message(error)}); restore it,"
      " and the same command goes on from the last checkpoint."
    ) from error
  except _OF_PEERS as error:
    workers = Workers(strategy)
    if workers.count == 1 or not _PEER.search(error.message):
      raise
    raise RunError(
      f"worker {workers.index} of {workers.count} lost another one"
      f" ({plain_message(error)}); start the same command on all of them, and"
      " they go on from the last checkpoint."
    ) from error


def _out_of_memory(job, strategy, error) -> str:
  return (
    f"the memory of a device does not suffice ({plain_message(error)}):"
    f" {describe_memory(job, strategy.num_replicas_in_sync)}; bind"
    " classifier.Classifier.micro_batches to 2 or more, which gives the same"
    " update, POLICY to 'mixed_bfloat16', BATCH_SIZE to less, or use more"
    " devices."
  )
