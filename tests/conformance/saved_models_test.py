"""What is saved loads in a process that has imported `nfnets_tf` alone."""

import json
import subprocess
import sys

import numpy as np
import pytest

import nfnets_tf
from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.optim.sgd import SGD
from tests.support import saved_models


def save_and_load(folder, names):
  """Returns what was saved, and {file: as another process loaded it}."""
  saved_models.save(str(folder), names)
  done = subprocess.run(
    [sys.executable, "-m", "tests.support.saved_models", str(folder)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  saved = json.loads((folder / "saved.json").read_text())
  loaded = json.loads(done.stdout.splitlines()[-1])
  assert set(loaded) == set(names)
  return saved, loaded


@pytest.mark.parametrize(
  "names",
  [
    # All that differs in the way it is loaded.
    ("n.keras", "n.h5", "c_folder"),
    pytest.param(
      (*saved_models.NETWORKS, *saved_models.CLASSIFIERS),
      marks=pytest.mark.soak,
    ),
  ],
)
def test_models_go_on_in_another_process(tmp_path, names):
  """With their averages, optimizer state and random numbers."""
  saved, loaded = save_and_load(tmp_path, names)
  for name, actual in loaded.items():
    assert not isinstance(actual, str), (name, actual)
    if name in saved_models.NETWORKS:
      assert actual == pytest.approx(saved["n"], abs=1e-6), name
      continue
    assert actual["iterations"] == [2]
    for key, value in saved["c"].items():
      assert actual[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_every_class_is_registered():
  for name in nfnets_tf.__all__:
    getattr(nfnets_tf, name)
  registered = keras.saving.get_custom_objects()
  ours = {k: v for k, v in registered.items() if k.startswith("nfnets_tf>")}
  listed = {
    f"nfnets_tf>{name}"
    for names in nfnets_tf.registration.MODULES.values()
    for name in names
  }
  assert set(ours) == listed
  for name, cls in ours.items():
    assert keras.saving.get_registered_name(cls) == name


@pytest.mark.parametrize("name", ["c.h5", "c.hdf5"])
def test_what_hdf5_cannot_hold_is_said_before_it_is_written(
  tmp_path, tiny_network, name
):
  model = nfnets_tf.Classifier(tiny_network())
  model.compile(SGD(0.1))
  with pytest.raises(UserError, match=r"\.keras file or a folder"):
    model.save(tmp_path / name)
  with pytest.raises(UserError, match="network alone"):
    model.save(tmp_path / "c", save_format="h5")
  before = model.network.get_weights()
  checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / name))
  with pytest.raises(UserError, match="save_weights"):
    model.fit(*saved_models.data(), callbacks=[checkpoint])
  assert not list(tmp_path.iterdir())
  for old, new in zip(before, model.network.get_weights()):
    np.testing.assert_array_equal(old, new)


def test_callbacks_save_and_resume(tmp_path, tiny_network):
  """Of Keras: checkpoints in all forms, and a backup of training."""

  def train(epochs, *more):
    keras.utils.set_random_seed(0)
    model = nfnets_tf.Classifier(tiny_network(), ema_decay=0.5)
    model.compile(SGD(0.05), run_eagerly=True)
    model.fit(
      *saved_models.data(),
      epochs=epochs,
      shuffle=False,
      callbacks=list(more),
      verbose=0,
    )
    return [v.numpy() for v in (*model.weights, *model.optimizer.variables)]

  class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
      if epoch == 1:
        raise KeyboardInterrupt

  expected = train(3)
  backup = str(tmp_path / "backup")
  weights, whole = (
    keras.callbacks.ModelCheckpoint(
      str(tmp_path / name), save_weights_only="weights" in name
    )
    for name in ("c.weights.h5", "whole.keras")
  )
  with pytest.raises(KeyboardInterrupt):
    train(3, keras.callbacks.BackupAndRestore(backup), Stop())
  resumed = train(3, keras.callbacks.BackupAndRestore(backup), weights, whole)
  for a, b in zip(resumed, expected):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  loaded = keras.models.load_model(tmp_path / "whole.keras")
  again = nfnets_tf.Classifier(tiny_network(), ema_decay=0.5)
  again.load_weights(str(tmp_path / "c.weights.h5"))
  for model in (loaded, again):
    for a, b in zip(model.weights, expected):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
