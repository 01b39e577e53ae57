"""Messages of errors; TensorFlow's are real ones where they can be raised."""

import os

import pytest
import tensorflow as tf

from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.errors import (
  RunError,
  UserError,
  plain_message,
  translate_tf_errors,
)
from nfnets_tf.keras_api import keras


def test_user_error_is_a_value_error():
  with pytest.raises(ValueError, match="too many"):
    raise UserError("too many")


def test_messages_say_nothing_of_nodes():
  with pytest.raises(tf.errors.InvalidArgumentError) as info:
    tf.io.decode_png(b"text")
  message = plain_message(info.value)
  assert "{{" not in message and "Op:" not in message and len(message) > 10
  assert plain_message(tf.errors.OpError(None, None, "", 3)) == "OpError"


@pytest.mark.parametrize(
  "error, message",
  [
    (OSError(28, "No space left on device"), "No space left on device"),
    (TimeoutError(), "TimeoutError"),
    (ValueError("one\ntwo"), "one"),
    (
      tf.errors.NotFoundError(
        None,
        None,
        "Graph execution error:\n\nDetected at node IteratorGetNext defined at"
        ' (most recent call last):\n  File "x.py", line 3, in f\n\n'
        "/data/a.tfrecord; No such file or directory\n\t [[{{node x}}]]",
      ),
      "/data/a.tfrecord; No such file or directory",
    ),
  ],
)
def test_plain_message_selects_the_line_with_the_cause(error, message):
  assert plain_message(error) == message


# As Keras gives it, with the peers' part from two real workers.
OF_KERAS = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
  File "launch/train.py", line 131, in <module>

  File "nfnets_tf/train/classifier.py", line 67, in train_step

%s
\t [[{{node CollectiveReduceV2}}]] [Op:__inference_train_function_123]"""
ABORTED = "Collective ops is aborted by: Connection reset by peer"


def translated(worker=0, num_workers=1, **options):
  return translate_tf_errors(
    worker=worker,
    num_workers=num_workers,
    describe_memory=lambda: "8 GB",
    **options,
  )


def sentence(action, expected, **options):
  """Returns the sentence of type `expected` that an action ends in."""
  with pytest.raises(expected) as error:
    with translated(**options):
      action()
  assert isinstance(error.value.__cause__, tf.errors.OpError)
  (line,) = str(error.value).splitlines()
  return line


def fitted(batches, *layers):
  """Trains, as a run does: errors come out of a graph's function."""
  model = keras.Sequential([*layers, keras.layers.Dense(1)])
  model.compile("sgd", "mse")
  return lambda: model.fit(batches, verbose=0)


def batches_of(records):
  return records.map(lambda _: (tf.zeros([3]), tf.zeros([1]))).batch(2)


class Greedy(keras.layers.Layer):
  """Asks for 40 TB an example."""

  def call(self, inputs):
    shape = tf.stack([tf.shape(inputs)[0] * 10**6, 10**7])
    return inputs + tf.reduce_sum(tf.random.uniform(shape))


def test_out_of_memory_reports_estimate_and_bindings():
  train = fitted(batches_of(tf.data.Dataset.range(2)), Greedy())
  line = sentence(train, UserError)
  assert "out of memory (OOM when allocating tensor with shape[" in line
  assert "): 8 GB; bind nfnet.NFNet.recompute to True" in line
  assert "classifier.Classifier.micro_batches" in line


def test_full_disk_is_distinguished_from_device_memory():
  def write():
    with tf.io.gfile.GFile("/dev/full", "w") as file:
      file.write("x")

  line = sentence(write, RunError)
  assert "/dev/full" in line and "No space left" in line


def test_missing_shard_is_named(make_dataset):
  split = pipeline.Split(
    directory=make_dataset(),
    split="train",
    num_classes=4,
    transforms=[preprocessing.Resize(image_size=8)],
  )
  info = split.read_info()
  os.remove(info.files[3])
  batches = split.training_batches(
    info,
    stream=pipeline.DataStream(batch_size=8, shuffle_buffer=4, seed=0),
    start_step=0,
    replicas=1,
  )
  line = sentence(lambda: list(batches.take(20)), RunError)
  assert info.files[3] in line and "No such file" in line
  assert "restore it and rerun the same command" in line


def test_file_missing_during_a_step_is_named(tmp_path):
  path = str(tmp_path / "train-00003.tfrecord")
  line = sentence(fitted(batches_of(tf.data.TFRecordDataset(path))), RunError)
  assert path in line and "No such file" in line


def test_file_without_permission_is_named():
  def read():
    text = "gs://bucket/x; Permission denied"
    raise tf.errors.PermissionDeniedError(None, None, text)

  assert "(gs://bucket/x; Permission denied)" in sentence(read, RunError)


def test_missing_op_kernel_is_not_a_missing_file():
  with pytest.raises(tf.errors.NotFoundError, match="No OpKernel"):
    with translated():
      raise tf.errors.NotFoundError(None, None, "No OpKernel was registered")


def lost(kind, message):
  def run():
    raise kind(None, None, message)

  return run


@pytest.mark.parametrize(
  "text", [ABORTED, OF_KERAS % ABORTED], ids=["short", "long"]
)
@pytest.mark.parametrize(
  "kind",
  [
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
  ],
)
def test_lost_worker_is_reported(kind, text):
  line = sentence(lost(kind, text), RunError, worker=1, num_workers=2)
  assert line.startswith(
    f"worker 1 of 2 lost another worker ({ABORTED}); rerun"
  )


# As TensorFlow adds to what a host reports, and to its loss.
FROM_HOST_1 = (
  "%s\nAdditional GRPC error information from remote target"
  " /job:worker/replica:0/task:1 while calling"
  ' /tensorflow.WorkerService/RecvTensor:\n:{"created":"@17956"}'
)
RESTARTED = (
  "Unable to find a context_id matching the specified one (123). Perhaps the"
  " worker was restarted, or the context was GC'd?"
)


@pytest.mark.parametrize(
  "kind, message, host",
  [
    (tf.errors.UnavailableError, FROM_HOST_1 % "failed to connect", "host 1"),
    (tf.errors.UnavailableError, "Socket closed", "a host"),
    (
      tf.errors.UnavailableError,
      "Failed copying input tensor from /job:worker/replica:0/task:1/device"
      ":CPU:0 in order to run AddN: Connection reset by peer",
      "a host",
    ),
    (tf.errors.AbortedError, FROM_HOST_1 % "Stream removed", "host 1"),
    (tf.errors.InvalidArgumentError, FROM_HOST_1 % RESTARTED, "host 1"),
  ],
)
def test_lost_host_of_a_slice_is_reported(kind, message, host):
  cause = message.splitlines()[0]
  line = sentence(lost(kind, message), RunError, num_hosts=2)
  assert line.startswith(f"{host} of the slice is lost ({cause}); when all of")
  assert "rerun the same command" in line


@pytest.mark.parametrize(
  "kind", [tf.errors.InvalidArgumentError, tf.errors.InternalError]
)
def test_what_a_host_reports_is_not_its_loss(kind):
  with pytest.raises(kind, match="logits and labels"):
    with translated(num_hosts=2):
      lost(kind, FROM_HOST_1 % "logits and labels must be broadcastable")()


def test_single_process_does_not_report_lost_workers():
  error = tf.errors.UnavailableError(None, None, OF_KERAS % ABORTED)
  with pytest.raises(tf.errors.UnavailableError) as same:
    with translated():
      raise error
  assert same.value is error


@pytest.mark.parametrize(
  "message, reason",
  [
    ("", "NotFoundError"),
    ("{{function_node x}} what it was [Op:X]\nmore", "what it was);"),
    ("\n\n  {{node y}}\n the first that says anything", "the first that says"),
    (OF_KERAS % "/data/a; No such file or directory", "/data/a; No such file"),
    (OF_KERAS % "NewRandomAccessFile failed to Create/Open: /a", "NewRandom"),
    (OF_KERAS % "Error executing an HTTP request: 404", "Error executing an"),
  ],
  ids=["none", "first", "third", "file", "open", "other"],
)
def test_file_errors_state_the_cause(message, reason):
  line = sentence(lost(tf.errors.NotFoundError, message), RunError)
  assert f"cannot read a file ({reason}" in line


@pytest.mark.parametrize(
  "error",
  [
    UserError("one"),
    RunError("two"),
    KeyboardInterrupt(),
    tf.errors.InvalidArgumentError(None, None, "three"),
  ],
)
def test_other_errors_pass_through(error):
  with pytest.raises(type(error)) as same:
    with translated():
      raise error
  assert same.value is error and error.__cause__ is None
