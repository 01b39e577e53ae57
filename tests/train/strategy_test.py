import fnmatch
import json
import logging

import pytest
import tensorflow as tf

from nfnets_tf.errors import NothingToDo, RunError, UserError
from nfnets_tf.train import strategy

TWO = {"cluster": {"worker": ["localhost:23450", "localhost:23451"]}}
ONE = {"cluster": {"worker": ["localhost:23450"]}}
OF_TPUS = ("TPU_NAME", "TPU_WORKER_ID", "TPU_LOAD_LIBRARY")


@pytest.fixture
def said(monkeypatch, caplog):
  """Returns what the project has logged."""
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  caplog.set_level(logging.INFO, "nfnets_tf")
  return lambda: [
    record.getMessage()
    for record in caplog.records
    if record.name == "nfnets_tf"
  ]


@pytest.fixture
def machine(monkeypatch):
  """Makes the machine one with these chips, GPUs and variables."""

  def make(chips=(), gpus=0, tf_config=None, **variables):
    for name in ("TF_CONFIG", *OF_TPUS):
      monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    if tf_config is not None:
      task = {"type": "worker", "index": 0}
      monkeypatch.setenv("TF_CONFIG", json.dumps({**tf_config, "task": task}))
    monkeypatch.setattr(
      tf.io.gfile, "glob", lambda pattern: fnmatch.filter(chips, pattern)
    )
    monkeypatch.setattr(
      tf.config,
      "list_physical_devices",
      lambda kind: [kind] * gpus if kind == "GPU" else [],
    )

  return make


def test_without_accelerators_auto_is_one_cpu(machine, said):
  machine()
  found = strategy.auto()
  assert strategy.describe(found) == "OneDeviceStrategy, 1 replica"
  assert "CPU:0" in str(found.extended.worker_devices)
  assert said() == [
    "Found neither TF_CONFIG nor a TPU nor a GPU: training on"
    " OneDeviceStrategy, 1 replica."
  ]


TPU = "/dev/accel0"


@pytest.mark.parametrize(
  "has, made, found",
  [
    (dict(gpus=1), "mirrored", "1 GPU"),
    (dict(gpus=8), "mirrored", "8 GPUs"),
    (dict(gpus=1, chips=[TPU]), "tpu local", "a TPU (local)"),
    (dict(gpus=1, TPU_NAME="pod"), "tpu pod", "a TPU (pod)"),
    (dict(gpus=8, tf_config=ONE), "mirrored", "8 GPUs"),
    (dict(chips=[TPU], tf_config=ONE), "tpu local", "a TPU (local)"),
    (dict(gpus=8, tf_config=TWO), "multi_worker", "TF_CONFIG of 2 workers"),
    (dict(chips=[TPU], tf_config=TWO), "multi_worker", "TF_CONFIG of 2 worke"),
  ],
)
def test_auto_takes_the_first_that_is_there_and_says_so(
  machine, monkeypatch, said, has, made, found
):
  """The devices are pretended, and so is what would be made of them."""
  machine(**has)
  called = []

  def maker(name):
    def make(**options):
      called.append(" ".join([name, *options.values()]))
      return tf.distribute.OneDeviceStrategy("CPU:0")

    return make

  for name in ("tpu", "mirrored", "multi_worker", "one_device"):
    monkeypatch.setattr(strategy, name, maker(name))
  strategy.auto()
  assert called == [made]
  (message,) = said()
  assert message.startswith(f"Found {found}")
  assert message.endswith(": training on OneDeviceStrategy, 1 replica.")


@pytest.mark.parametrize(
  "has, address",
  [
    (dict(), None),
    (dict(TPU_NAME=""), None),
    (dict(chips=["/dev/accel0"]), "local"),
    (dict(chips=["/dev/vfio/0"]), "local"),
    (dict(chips=["/dev/vfio/vfio"]), None),  # the driver alone
    (dict(TPU_NAME="pod"), "pod"),
    (dict(chips=[TPU], TPU_NAME="pod"), "local"),
    (dict(chips=[TPU], TPU_NAME="pod", TPU_LOAD_LIBRARY="1"), "local"),
    (dict(chips=[TPU], TPU_NAME="pod", TPU_LOAD_LIBRARY="0"), "pod"),
    (dict(chips=[TPU], TPU_LOAD_LIBRARY="0"), "local"),
  ],
)
def test_a_tpu_is_of_this_host_or_has_a_name(machine, has, address):
  machine(**has)
  assert strategy.tpu_address() == address


def test_a_missing_tpu_ends_in_the_bindings_that_help(machine):
  machine()
  with pytest.raises(UserError, match="found no TPU.*@strategy.one_device"):
    strategy.tpu(address="local")


def test_a_tpu_that_does_not_answer_ends_in_the_bindings_that_help(machine):
  machine(chips=[TPU])  # which TensorFlow does not find
  with pytest.raises(UserError, match="could not reach the TPU 'local'") as e:
    strategy.tpu(address="local")
  (sentence,) = str(e.value).splitlines()
  assert sentence.endswith("@strategy.one_device to train on this machine.")


def test_of_a_slice_only_the_first_host_trains(machine):
  machine(chips=[TPU], TPU_NAME="pod", TPU_WORKER_ID="1")
  with pytest.raises(NothingToDo, match="TPU_WORKER_ID = 1: the first .*'pod'"):
    strategy.tpu(address="pod")
  # Chips of one's own are nobody else's.
  with pytest.raises(UserError, match="could not reach the TPU 'local'"):
    strategy.tpu(address="local")


def test_missing_gpus_end_in_the_binding_that_helps():
  with pytest.raises(UserError, match="found no GPU.*@strategy.one_device"):
    strategy.mirrored()


@pytest.mark.parametrize("value", ["", "{}"])
def test_workers_without_tf_config_end_in_what_helps(machine, value):
  machine(TF_CONFIG=value)
  with pytest.raises(UserError, match="no TF_CONFIG .*docs/many_machines.md"):
    strategy.multi_worker()


def test_workers_that_cannot_be_reached_end_in_a_sentence(machine, said):
  """Here since TensorFlow runs already; otherwise it would wait for them."""
  machine(tf_config=TWO)
  tf.zeros([1])
  with pytest.raises(RunError, match="worker 0 cannot .*localhost:23451"):
    strategy.multi_worker()
  assert said() == [
    "Worker 0 of 2; waiting for all of localhost:23450, localhost:23451."
  ]


def test_describe_counts_replicas():
  mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  assert strategy.describe(mirrored) == "MirroredStrategy, 2 replicas"
