"""Real errors of TensorFlow where there can be some, and their sentences."""

import json
import os
import types

import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.errors import RunError, UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.train.breakdown import explained
from nfnets_tf.train.memory import describe_memory

JOB = types.SimpleNamespace(
  network=lambda: NFNet("femto", 4),
  train_split=types.SimpleNamespace(image_shape=lambda: (32, 32, 3)),
  sam=None,
  policy="float32",
  batch_size=24,
)
# As Keras gives it, with the peers' part from two real workers.
OF_KERAS = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
  File "launch/train.py", line 131, in <module>

  File "nfnets_tf/train/guard.py", line 67, in summed

%s
\t [[{{node CollectiveReduceV2}}]] [Op:__inference_train_function_123]"""
ABORTED = "Collective ops is aborted by: Connection reset by peer"


def sentence(action, expected, strategy=None):
  """Returns the sentence of type `expected` that an action ends in."""
  with pytest.raises(expected) as error:
    with explained(JOB, strategy or tf.distribute.get_strategy()):
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


def test_memory_that_does_not_suffice_ends_in_what_would():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  train = fitted(batches_of(tf.data.Dataset.range(2)), Greedy())
  line = sentence(train, UserError, strategy)
  assert "does not suffice (OOM when allocating tensor with shape[" in line
  estimate = describe_memory(JOB, replicas=2)
  assert f"): {estimate}; bind classifier.Classifier.micro_batches" in line


def test_a_full_disk_is_not_taken_for_a_devices_memory():
  def write():
    with tf.io.gfile.GFile("/dev/full", "w") as file:
      file.write("x")

  line = sentence(write, RunError)
  assert "/dev/full" in line and "No space left" in line


def test_a_shard_that_is_gone_is_named(make_dataset):
  split = pipeline.Split(
    directory=make_dataset(),
    split="train",
    num_classes=4,
    operations=[preprocess.Resize(image_size=8)],
  )
  index = split.index()
  os.remove(index.files[3])
  batches = split.training_batches(
    index, host_batch=8, replicas=1, start_step=0, shuffle_buffer=4, seed=0
  )
  line = sentence(lambda: list(batches.take(20)), RunError)
  assert index.files[3] in line and "No such file" in line
  assert "restore it, and the same command goes on" in line


def test_a_file_that_is_gone_in_a_step_is_named(tmp_path):
  path = str(tmp_path / "train-00003.tfrecord")
  line = sentence(fitted(batches_of(tf.data.TFRecordDataset(path))), RunError)
  assert path in line and "No such file" in line


def test_a_file_that_may_not_be_read_is_named():
  def read():
    text = "gs://bucket/x; Permission denied"
    raise tf.errors.PermissionDeniedError(None, None, text)

  assert "(gs://bucket/x; Permission denied)" in sentence(read, RunError)


def test_an_operation_that_a_device_does_not_know_is_no_file():
  with pytest.raises(tf.errors.NotFoundError, match="No OpKernel"):
    with explained(JOB, tf.distribute.get_strategy()):
      raise tf.errors.NotFoundError(None, None, "No OpKernel was registered")


class OfTwo(tf.distribute.MultiWorkerMirroredStrategy):
  """Has the place of TF_CONFIG, without any peer."""

  cluster_resolver = None

  def __init__(self):
    self.cluster_resolver = (
      tf.distribute.cluster_resolver.TFConfigClusterResolver()
    )


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
def test_a_worker_that_has_lost_another_says_so(monkeypatch, kind, text):
  task = {"type": "worker", "index": 1}
  cluster = {"worker": ["a:1", "b:2"]}
  config = json.dumps({"cluster": cluster, "task": task})
  monkeypatch.setenv("TF_CONFIG", config)
  line = sentence(lost(kind, text), RunError, OfTwo())
  assert line.startswith(f"worker 1 of 2 lost another one ({ABORTED}); start")


def test_alone_nobody_can_be_lost():
  error = tf.errors.UnavailableError(None, None, OF_KERAS % ABORTED)
  with pytest.raises(tf.errors.UnavailableError) as same:
    with explained(JOB, tf.distribute.get_strategy()):
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
def test_of_many_lines_the_one_that_says_what_happened(message, reason):
  line = sentence(lost(tf.errors.NotFoundError, message), RunError)
  assert f"cannot be read ({reason}" in line


@pytest.mark.parametrize(
  "error",
  [
    UserError("one"),
    RunError("two"),
    KeyboardInterrupt(),
    tf.errors.InvalidArgumentError(None, None, "three"),
  ],
)
def test_what_is_a_sentence_or_another_matter_passes_through(error):
  with pytest.raises(type(error)) as same:
    with explained(JOB, tf.distribute.get_strategy()):
      raise error
  assert same.value is error and error.__cause__ is None
