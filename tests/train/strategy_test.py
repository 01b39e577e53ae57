import pytest
import tensorflow as tf

from nfnets_tf.ops.errors import UserError
from nfnets_tf.train import strategy


def test_without_accelerators_auto_is_one_cpu():
  found = strategy.auto()
  assert strategy.describe(found) == "OneDeviceStrategy, 1 replica"
  assert "CPU:0" in str(found.extended.worker_devices)


def test_a_missing_tpu_ends_in_the_bindings_that_help(monkeypatch):
  monkeypatch.delenv("TPU_NAME", raising=False)
  with pytest.raises(UserError, match="found no TPU.*@strategy.one_device"):
    strategy.tpu(address="local")


def test_missing_gpus_end_in_the_binding_that_helps():
  with pytest.raises(UserError, match="found no GPU.*@strategy.one_device"):
    strategy.mirrored()


def test_auto_prefers_a_tpu_then_gpus(monkeypatch):
  monkeypatch.setattr(strategy, "tpu", lambda *, address: f"tpu {address}")
  monkeypatch.setattr(strategy, "mirrored", lambda: "mirrored")
  monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
  assert strategy.auto() == "mirrored"
  monkeypatch.setenv("TPU_NAME", "x")
  assert strategy.auto() == "tpu local"


def test_describe_counts_replicas():
  mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  assert strategy.describe(mirrored) == "MirroredStrategy, 2 replicas"
