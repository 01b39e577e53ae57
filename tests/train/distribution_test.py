import fnmatch
import json
import logging
import socket
import threading
import types

import pytest
import tensorflow as tf

from nfnets_tf.errors import NothingToDo, RunError, UserError
from nfnets_tf.train import distribution
from nfnets_tf.train.distribution import Cluster, read_cluster

TWO = {"cluster": {"worker": ["localhost:23450", "localhost:23451"]}}
ONE = {"cluster": {"worker": ["localhost:23450"]}}
TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_LOAD_LIBRARY")


@pytest.fixture
def messages(monkeypatch, caplog):
  """Returns a function that lists the logged messages."""
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  caplog.set_level(logging.INFO, "nfnets_tf")
  return lambda: [
    record.getMessage()
    for record in caplog.records
    if record.name == "nfnets_tf"
  ]


@pytest.fixture
def machine(monkeypatch):
  """Simulates chips, GPUs and environment variables."""

  def make(chips=(), gpus=0, tf_config=None, **variables):
    for name in ("TF_CONFIG", *TPU_VARIABLES):
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


def test_auto_without_accelerators_is_one_cpu(machine, messages):
  machine()
  strategy = distribution.auto()
  assert distribution.describe(strategy) == "OneDeviceStrategy, 1 replica"
  assert "CPU:0" in str(strategy.extended.worker_devices)
  assert messages() == [
    "Found neither TF_CONFIG nor a TPU nor a GPU: training on"
    " OneDeviceStrategy, 1 replica."
  ]


TPU = "/dev/accel0"


@pytest.mark.parametrize(
  "has, made, devices",
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
def test_auto_prefers_workers_then_tpu_then_gpus(
  machine, monkeypatch, messages, has, made, devices
):
  """With simulated devices and strategies."""
  machine(**has)
  called = []

  def maker(name):
    def make(**options):
      called.append(" ".join([name, *options.values()]))
      return tf.distribute.OneDeviceStrategy("CPU:0")

    return make

  for name in ("tpu", "mirrored", "multi_worker", "one_device"):
    monkeypatch.setattr(distribution, name, maker(name))
  distribution.auto()
  assert called == [made]
  (message,) = messages()
  assert message.startswith(f"Found {devices}")
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
def test_tpu_address(machine, has, address):
  machine(**has)
  assert distribution.tpu_address() == address


def test_missing_tpu_names_the_alternatives(machine):
  machine()
  with pytest.raises(UserError, match="found no TPU.*@distribution.one_device"):
    distribution.tpu(address="local")


def test_unreachable_tpu_names_the_alternatives(machine):
  machine(chips=[TPU])  # which TensorFlow does not find
  with pytest.raises(UserError, match="could not reach the TPU 'local'") as e:
    distribution.tpu(address="local")
  (sentence,) = str(e.value).splitlines()
  assert sentence.endswith("@distribution.one_device to train on this machine.")


def test_only_first_host_of_slice_trains(machine):
  machine(chips=[TPU], TPU_NAME="pod", TPU_WORKER_ID="1")
  with pytest.raises(NothingToDo, match="TPU_WORKER_ID = 1: the first .*'pod'"):
    distribution.tpu(address="pod")
  # The chips of one host belong to no slice.
  with pytest.raises(UserError, match="could not reach the TPU 'local'"):
    distribution.tpu(address="local")


def test_missing_gpus_name_the_alternatives():
  with pytest.raises(UserError, match="found no GPU.*@distribution.one_device"):
    distribution.mirrored()


@pytest.mark.parametrize("value", ["", "{}"])
def test_multi_worker_without_tf_config_names_the_docs(machine, value):
  machine(TF_CONFIG=value)
  with pytest.raises(UserError, match="no TF_CONFIG .*docs/many_machines.md"):
    distribution.multi_worker()


def test_unreachable_workers_are_a_run_error(machine, messages):
  """At once, since TensorFlow runs already; otherwise it waits for them."""
  machine(tf_config=TWO)
  tf.zeros([1])
  with pytest.raises(RunError, match="worker 0 cannot .*localhost:23451"):
    distribution.multi_worker()
  assert messages() == [
    "Worker 0 of 2; waiting for all of localhost:23450, localhost:23451."
  ]


def test_describe_counts_replicas():
  mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  assert distribution.describe(mirrored) == "MirroredStrategy, 2 replicas"


TWO_WORKERS = ["a:1", "b:2"]


def tf_config(workers=TWO_WORKERS, kind="worker", index=0, **jobs):
  task = {"type": kind, "index": index}
  return {"cluster": {"worker": workers, **jobs}, "task": task}


@pytest.fixture
def read(monkeypatch):
  def read(value):
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv("TF_CONFIG", text)
    return read_cluster()

  return read


def test_no_cluster_without_tf_config(monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  assert read_cluster() is None


@pytest.mark.parametrize("value", ["", " \n", {}, {"cluster": {}}])
def test_no_cluster_without_workers(read, value):
  assert read(value) is None


@pytest.mark.parametrize(
  "value, expected",
  [
    (tf_config(), Cluster(("a:1", "b:2"), 0)),
    (tf_config(index=1), Cluster(("a:1", "b:2"), 1)),
    (tf_config(index="1"), Cluster(("a:1", "b:2"), 1)),  # as shells write it
    (tf_config(["a:1"]), Cluster(("a:1",), 0)),
    (tf_config(["[::1]:22"]), Cluster(("[::1]:22",), 0)),
    # TensorFlow counts a chief before the workers.
    (tf_config(chief=["c:3"]), Cluster(("c:3", "a:1", "b:2"), 1)),
    (tf_config(chief=["c:3"], index=1), Cluster(("c:3", "a:1", "b:2"), 2)),
    (
      tf_config(chief=["c:3"], kind="chief"),
      Cluster(("c:3", "a:1", "b:2"), 0),
    ),
  ],
)
def test_cluster_of_tf_config(read, value, expected):
  assert read(value) == expected


@pytest.mark.parametrize(
  "value",
  [
    "{'cluster'",
    {"cluster": TWO_WORKERS, "task": {"type": "worker", "index": 0}},
    {"cluster": {"worker": TWO_WORKERS}},
    {"cluster": {"worker": TWO_WORKERS}, "task": {"type": "worker"}},
    tf_config(index="first"),
    tf_config(index=None),
    tf_config(None),
    tf_config(index=2),
    tf_config(index=-1),
    tf_config([]),
    tf_config(kind="chief"),
    tf_config(kind="ps"),
    tf_config(ps=["c:3"]),
    tf_config(kind=3),
    tf_config(["a:1", "b"]),
    tf_config(["a:1", ":2"]),
    tf_config(["a:1", "b:x"]),
    tf_config("a:1"),
    tf_config([1, 2]),
    tf_config(["a:1", "a:1"]),
    tf_config(chief=["c:3", "d:4"]),
    tf_config(["a:1"], chief=["a:1"]),
  ],
)
def test_refuses_invalid_tf_config(read, value):
  with pytest.raises(UserError) as error:
    read(value)
  shown = value if isinstance(value, str) else json.dumps(value)
  assert str(error.value).startswith(f"TF_CONFIG = {shown} is invalid;")
  assert '"task": {"type": "worker", "index": 0}' in str(error.value)


def test_error_shortens_long_tf_config(read):
  value = tf_config([f"host{i}:1" for i in range(1000)], index=1000)
  with pytest.raises(UserError) as error:
    read(json.dumps(value, indent=2))
  (sentence,) = str(error.value).splitlines()
  assert "... is invalid" in sentence and len(sentence) < 500


@pytest.fixture
def host():
  """A socket that listens as a host's server does, and its address."""
  with socket.create_server(("localhost", 0)) as server:
    yield server, f"localhost:{server.getsockname()[1]}"


def test_only_a_slice_has_hosts_to_watch():
  assert distribution.slice_hosts(distribution.one_device()) == []
  cluster = tf.train.ClusterSpec({"worker": ["a:1", "b:2"]})
  resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster)
  strategy = types.SimpleNamespace(cluster_resolver=resolver)
  assert distribution.slice_hosts(strategy) == ["a:1", "b:2"]


def test_a_host_whose_server_ends_is_lost(host):
  server, address = host
  lost, called = [], threading.Event()

  def on_lost(which):
    lost.append(which)
    called.set()

  with distribution.watch_hosts(
    [address], poll=0.01, grace=0.0, on_lost=on_lost
  ):
    assert not called.wait(0.2)
    server.close()
    assert called.wait(10)
  assert lost == [address]


def test_an_error_that_ends_the_run_is_not_anticipated(host):
  server, address = host
  lost = []
  server.close()
  with distribution.watch_hosts(
    [address], poll=0.01, grace=10.0, on_lost=lost.append
  ):
    threading.Event().wait(0.1)
  threading.Event().wait(0.1)
  assert not lost
