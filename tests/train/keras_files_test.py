"""What pretrained_test.py does not see: what is left out, and damage."""

import zipfile

import h5py
import numpy as np
import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.keras_files import read_keras_file


@pytest.fixture(scope="module")
def model():
  model = Classifier(NFNet("femto", 4))
  model.compile(SGD(0.1))
  return model


def test_metrics_and_momentum_are_no_weights(model, tmp_path):
  path = str(tmp_path / "c.keras")
  model.save(path)
  for averaged in (True, False):
    found = read_keras_file(path, model.network, averaged=averaged)
    assert "left over" not in found
    assert sum(map(len, found.values())) == 97


def test_arrays_that_are_not_the_networks_are_left_over(model, tmp_path):
  path = str(tmp_path / "w.h5")
  model.network.save_weights(path)
  with h5py.File(path, "a") as file:
    file["extra/kernel:0"] = np.zeros(3)
  found = read_keras_file(path, model.network, averaged=True)
  assert list(found["left over"]) == ["extra/kernel:0"]


def test_nothing_of_its_configuration_is_made(model, tmp_path):
  """Keras' loader would import and call what a file's configuration names."""
  path, hostile = str(tmp_path / "c.keras"), str(tmp_path / "h.keras")
  model.network.save(path)
  config = '{"module": "os", "class_name": "system", "config": "touch x"}'
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
    new.writestr("config.json", config)
    new.writestr("model.weights.h5", old.read("model.weights.h5"))
  found = read_keras_file(hostile, model.network, averaged=True)
  assert sum(map(len, found.values())) == 97


@pytest.mark.parametrize("name", ["x.keras", "x.h5"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x89HDF\r\n"])
def test_damaged_files_are_refused(model, tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match="cannot be read .*save the model again"):
    read_keras_file(str(path), model.network, averaged=True)


def test_an_archive_without_weights_is_refused(model, tmp_path):
  path = tmp_path / "x.keras"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("config.json", "{}")
  with pytest.raises(UserError, match="no item named 'model.weights.h5'"):
    read_keras_file(str(path), model.network, averaged=True)
