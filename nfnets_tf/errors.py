"""Errors that end a run with one sentence, and TensorFlow's translated."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf

# TensorFlow wraps the cause in lines about nodes of its graph.
_NODE = re.compile(r"\{\{.*?\}\}|\[Op:\w+\].*")
_ASSERTION = re.compile(r"assertion failed: \[(.*?)\]$")
_WHERE = re.compile(
  r"Graph execution error|Detected at node|File \"|^\^|^\S+\($"
)
_REASON = re.compile(
  r"Collective ops is aborted by.*|\S*[:;] ?No such file.*|OOM when [^;]*"
)
# When a worker is lost, the class depends on which operation waited for it.
_PEER_ERRORS = (
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
# Added to an error of any class that a host of a slice reports, or to its loss.
_REMOTE = re.compile(r"remote target \S*task:(\d+)")
_DISCONNECTED = re.compile(
  r"task:\d|failed to connect|ocket closed|onnection reset|roken pipe"
)
_HOST_ERRORS = (
  tf.errors.UnavailableError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
)
# Of a server that started anew.
_FORGOTTEN = "Unable to find a context_id"
_FILE_ERRORS = (tf.errors.NotFoundError, tf.errors.PermissionDeniedError)
# TensorFlow has one class for a full disk and for a device's full memory.
_DISK = re.compile("No space left|[Qq]uota")


class UserError(ValueError):
  """Invalid input of the user.

  The message is one sentence that says what was received, what was expected
  and what to do; the launcher prints it without a traceback and exits with
  code 2.
  """


class Diverged(UserError):
  """Losses or gradients stayed non-finite after all rollbacks."""


class RunError(Exception):
  """A failure outside the run, such as a disk or another machine.

  The message is one sentence that says what failed and what to do; the launcher
  prints it and exits with code 1, and the same command resumes the run.
  """


class NothingToDo(Exception):
  """Another process does the work of this one; exit code 0."""


class Preempted(Exception):
  """The process received SIGTERM before its work was done; all is saved."""


def plain_message(error: Exception) -> str:
  """Returns the one line of an error's message that states the cause."""
  text = getattr(error, "message", None) or getattr(error, "strerror", None)
  lines = [_NODE.sub("", x).strip() for x in (text or str(error)).splitlines()]
  for line in lines:
    if match := _REASON.search(line):
      return match[0]
    if match := _ASSERTION.search(line):
      return match[1]
  causes = (line for line in lines if line and not _WHERE.match(line))
  return next(causes, type(error).__name__)


def is_host_lost(error: Exception) -> bool:
  """Returns whether an error says that a host of a slice is gone."""
  if isinstance(error, tf.errors.InvalidArgumentError):
    return _FORGOTTEN in error.message
  return isinstance(error, _HOST_ERRORS) and bool(
    _DISCONNECTED.search(error.message)
  )


def require(condition: bool, name: str, value: object, expected: str) -> None:
  """Raises a UserError about a parameter unless a condition holds.

  Args:
    condition: whether the value can be used.
    name: of the parameter, as a gin file binds it.
    value: that was given.
    expected: what the parameter accepts, such as "a number >= 0".
  """
  if not condition:
    raise UserError(f"{name} = {value!r} is invalid; expected {expected}.")


def refuse_keras3(receiver: str, *values: object) -> None:
  """Raises a UserError if a value is an object or class of Keras 3.

  From TensorFlow 2.16 on, `tf.keras` and `import keras` are Keras 3, whose
  objects look like those of Keras 2 and fail late, or do something else.

  Args:
    receiver: what received the values, for the message.
    *values: any objects; lists and tuples of objects too.
  """
  version = getattr(sys.modules.get("keras"), "__version__", "2")
  if version.split(".")[0] < "3":
    return
  for value in values:
    if isinstance(value, (list, tuple)):
      refuse_keras3(receiver, *value)
      continue
    kind = value if isinstance(value, type) else type(value)
    if any(base.__module__.split(".")[0] == "keras" for base in kind.__mro__):
      raise UserError(
        f"{receiver} received {kind.__name__} of Keras {version}; expected one"
        " of Keras 2, from `from nfnets_tf import keras` (in gin files `from"
        " nfnets_tf import keras_api`) instead of `import keras` or `tf.keras`."
      )


@contextlib.contextmanager
def translate_tf_errors(
  *,
  worker: int,
  num_workers: int,
  num_hosts: int = 0,
  describe_memory: Callable[[], str],
) -> Iterator[None]:
  """Translates TensorFlow's errors of memory, files and workers.

  Args:
    worker: index of this process.
    num_workers: number of processes that train together.
    num_hosts: number of other machines' servers that this process drives.
    describe_memory: returns an estimate of the memory that a device needs.

  Raises:
    UserError: if a device runs out of memory.
    RunError: if a file cannot be read or written, or another worker or a host
      of the slice is lost.
  """
  try:
    yield
  except tf.errors.ResourceExhaustedError as error:
    if _DISK.search(error.message):
      raise RunError(
        f"cannot write a file ({plain_message(error)}); free some space and"
        " rerun the same command to resume from the last checkpoint."
      ) from error
    raise UserError(
      f"a device ran out of memory ({plain_message(error)}):"
      f" {describe_memory()}; bind nfnet.NFNet.recompute to True or"
      " classifier.Classifier.micro_batches to 2 or more, which give the same"
      " update, POLICY to 'mixed_bfloat16' or BATCH_SIZE to less, or use more"
      " devices."
    ) from error
  except _FILE_ERRORS as error:
    if "OpKernel" in error.message:
      raise  # an operation that a device does not implement, not a file
    raise RunError(
      f"cannot read a file ({plain_message(error)}); restore it and rerun the"
      " same command to resume from the last checkpoint."
    ) from error
  except (*_PEER_ERRORS, tf.errors.InvalidArgumentError) as error:
    if num_hosts and is_host_lost(error):
      raise RunError(_describe_lost_host(error)) from error
    is_peer = isinstance(error, _PEER_ERRORS) and _PEER.search(error.message)
    if num_workers == 1 or not is_peer:
      raise
    raise RunError(
      f"worker {worker} of {num_workers} lost another worker"
      f" ({plain_message(error)}); rerun the same command on all of them to"
      " resume from the last checkpoint."
    ) from error


def _describe_lost_host(error: tf.errors.OpError) -> str:
  number = _REMOTE.search(error.message)
  return (
    f"{f'host {number[1]}' if number else 'a host'} of the slice is lost"
    f" ({plain_message(error)}); when all of its hosts are back, rerun the same"
    " command to resume from the last checkpoint."
  )
