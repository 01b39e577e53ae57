import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocess
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.ops.errors import UserError
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.serving import export
from nfnets_tf.train.classifier import Classifier

OPERATIONS = [preprocess.SquashCentreCrop(image_size=32, margin=4)]
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def model():
  tf.random.set_seed(0)
  model = Classifier(NFNet("femto", 3))
  model.compile(SGD(0.1))
  model.optimizer.iterations.assign(1)  # before, averages are the weights
  for weight, average in zip(model.network.weights, model.averages):
    weight.assign_add(tf.random.normal(weight.shape, stddev=0.5))
    average.assign_add(tf.random.normal(weight.shape, stddev=0.5))
  return model


@pytest.fixture
def images():
  r = np.random.default_rng(0)
  return r.integers(0, 255, [2, 50, 40, 3]).astype(np.uint8)


def expected(model, images):
  seed = tf.zeros([2], tf.int64)
  ready = [OPERATIONS[0](tf.constant(image), seed) for image in images]
  return model(tf.stack(ready)).numpy()


def save(model, directory, **options):
  return export.export_saved_model(
    model,
    str(directory),
    class_names=NAMES,
    operations=OPERATIONS,
    **options,
  )


def test_images_get_the_averaged_networks_logits_and_names(
  tmp_path, model, images
):
  before = [v.numpy() for v in (*model.network.weights, *model.averages)]
  path = save(model, tmp_path / "1")
  answer = tf.saved_model.load(path).signatures["serving_default"](
    images=tf.constant(images)
  )
  with model.averaged():
    logits = expected(model, images)
  np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    answer["probabilities"], tf.nn.softmax(logits), rtol=1e-4, atol=1e-4
  )
  names = [NAMES[i].encode() for i in logits.argmax(-1)]
  assert answer["classes"].numpy().tolist() == names
  for old, new in zip(before, (*model.network.weights, *model.averages)):
    np.testing.assert_array_equal(old, new)


def test_raw_weights_on_request(tmp_path, model, images):
  served = tf.saved_model.load(save(model, tmp_path / "1", averaged=False))
  answer = served.signatures["serving_default"](images=tf.constant(images))
  raw = expected(model, images)
  np.testing.assert_allclose(answer["logits"], raw, rtol=1e-4, atol=1e-4)
  with model.averaged():
    assert np.abs(expected(model, images) - raw).max() > 1e-3


def test_bytes_of_mixed_sizes_and_kinds_in_one_batch(tmp_path, model, images):
  other = images[0][:30, :35]
  encoded = [tf.io.encode_png(images[0]), tf.io.encode_jpeg(other)]
  served = tf.saved_model.load(save(model, tmp_path / "1"))
  answer = served.signatures["serving_bytes"](encoded=tf.stack(encoded))
  decoded = [images[0], tf.io.decode_jpeg(encoded[1]).numpy()]
  with model.averaged():
    logits = np.concatenate([expected(model, [image]) for image in decoded])
  np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-4)


def test_it_is_read_without_this_project(tmp_path, model, images):
  path = save(model, tmp_path / "1")
  np.save(tmp_path / "images.npy", images)
  script = (
    "import sys; sys.modules['nfnets_tf'] = None\n"
    "import numpy as np, tensorflow as tf\n"
    f"served = tf.saved_model.load({path!r}).signatures['serving_default']\n"
    f"images = tf.constant(np.load({str(tmp_path / 'images.npy')!r}))\n"
    "print(served(images=images)['classes'].numpy().tolist())\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  with model.averaged():
    names = [NAMES[i].encode() for i in expected(model, images).argmax(-1)]
  assert done.stdout.strip() == str(names), done.stderr[-500:]


def test_versions_count_up_and_nothing_is_overwritten(tmp_path, model):
  options = {"class_names": NAMES, "operations": OPERATIONS}
  root = str(tmp_path / "served")
  for version in ("1", "2"):
    path = export.export_version(model, root, **options)
    assert path == os.path.join(root, version)
  assert export.next_version(root) == os.path.join(root, "3")
  with pytest.raises(UserError, match=r"not overwritten.*served/3"):
    save(model, tmp_path / "served" / "1")
  assert sorted(os.listdir(root)) == ["1", "2"]


def test_names_must_fit_the_network(tmp_path, model):
  with pytest.raises(UserError, match="2 names, but the network has 3"):
    export.export_saved_model(
      model, str(tmp_path / "1"), class_names=["a", "b"], operations=OPERATIONS
    )


def test_what_could_not_be_written_leaves_nothing(model, tmp_path, monkeypatch):
  def fail(*arguments):
    tf.io.gfile.makedirs(arguments[1])
    raise OSError("no space")

  monkeypatch.setattr(tf.saved_model, "save", fail)
  with pytest.raises(OSError, match="no space"):
    save(model, tmp_path / "1")
  assert list(tmp_path.iterdir()) == []
