"""Published weights: downloaded for the networks that have them."""

import hashlib
import logging
import os
import pathlib

import numpy as np
import pytest

import nfnets_tf
from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import find_run_dir
from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost, pretrained
from nfnets_tf.models.pretrained import Published
from nfnets_tf.models.weights import InitWeights, load_weights, save_deepmind
from tests.support.file_server import serve


@pytest.fixture(scope="module")
def trained():
  """The network whose weights are on the server."""
  network = nfnets_tf.NFNet("femto", 4)
  r = np.random.default_rng(0)
  for variable in network.variables:
    variable.assign(r.standard_normal(variable.shape))
  return network


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "femto.npz"
  save_deepmind(trained, str(path))
  with serve(path.read_bytes()) as server:
    yield server


def same(network, trained, but=0):
  pairs = list(zip(network.variables, trained.variables))
  return [np.array_equal(*pair) for pair in pairs] == (
    [True] * (len(pairs) - but) + [False] * but
  )


def test_a_network_begins_with_weights_of_a_url(server, trained, tmp_path):
  url = f"{server.url}/keras/femto.npz"
  network = nfnets_tf.NFNet("femto", 4, weights=url)
  assert same(network, trained)
  asked = len(server.requests)
  assert same(nfnets_tf.NFNet("femto", 4, weights=url), trained)
  # What is made of the network has its weights already.
  assert "weights" not in network.get_config()
  network.save(str(tmp_path / "x.keras"))
  assert same(keras.models.load_model(str(tmp_path / "x.keras")), trained)
  keras.models.clone_model(network)
  assert len(server.requests) == asked


def test_a_head_of_other_classes_is_new_and_said(trained, tmp_path, caplog):
  path = str(tmp_path / "femto.npz")
  save_deepmind(trained, path)
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    assert same(nfnets_tf.NFNet("femto", 4, weights=path), trained)
    body = nfnets_tf.NFNet("femto", include_top=False, weights=path)
  assert same(body, trained) and not caplog.records
  with caplog.at_level(logging.WARNING, "nfnets_tf"):
    network = nfnets_tf.NFNet("femto", 7, weights=path)
  assert same(network, trained, but=2)
  assert "The classifier is new" in caplog.text


def test_weights_of_another_network_are_refused(trained, tmp_path):
  path = str(tmp_path / "femto.npz")
  save_deepmind(trained, path)
  with pytest.raises(UserError, match="choose the variant"):
    nfnets_tf.NFNet("nano", 4, weights=path)
  with pytest.raises(UserError, match="received classes, expected num_classes"):
    nfnets_tf.NFNet("femto", classes=4)
  with pytest.raises(UserError, match="bind WEIGHTS"):
    # As where a dry run counts a network's parameters.
    cost.abstractly(lambda: nfnets_tf.NFNet("femto", 4, weights=path))


@pytest.mark.parametrize("variant", ["F7", "F0+", "F6+", "nano", "W8"])
def test_variants_without_published_weights_are_refused(variant):
  words = (
    f"no weights of {variant.replace('+', '.')}: published are those of F0"
  )
  with pytest.raises(UserError, match=words):  # before the network is built
    nfnets_tf.NFNet(variant, weights="imagenet")
  with pytest.raises(UserError, match=words):
    start(variant).describe()


def start(variant="femto", **published):
  return InitWeights(
    path="imagenet",
    keep_head=True,
    averaged=True,
    variant=variant,
    published=Published(**published),
  )


@pytest.fixture
def femto_is_published(monkeypatch):
  monkeypatch.setattr(pretrained, "VARIANTS", ("femto",))


@pytest.mark.usefixtures("femto_is_published")
def test_a_run_downloads_before_it_begins(server, trained, tmp_path):
  url = f"{server.url}/run/{{variant}}_haiku.npz"
  weights = start(url=url, cache=str(tmp_path))
  address = url.replace("{variant}", "femto")
  assert weights.describe() == f"{address}, to be downloaded, with its head"
  weights.check()
  assert server.requests[-1] == "/run/femto_haiku.npz"
  assert weights.describe() == f"{address}, already downloaded, with its head"
  asked = len(server.requests)
  network = nfnets_tf.NFNet("femto", 4)
  weights(network)
  assert same(network, trained) and len(server.requests) == asked


@pytest.mark.usefixtures("femto_is_published")
def test_the_checksum_is_that_of_the_binding(server, tmp_path):
  options = {"url": f"{server.url}/sum/x.npz", "cache": str(tmp_path)}
  with pytest.raises(UserError, match="expected 0000"):
    start(sha256="0" * 64, **options).check()
  digest = hashlib.sha256(server.content).hexdigest()
  start(sha256=digest, **options).check()
  # A path instead of a URL is read where it is.
  path = tmp_path / "femto.npz"
  path.write_bytes(server.content)
  options["url"] = str(tmp_path / "{variant}.npz")
  start(sha256=digest, **options).check()
  with pytest.raises(
    UserError, match="femto.npz' has the SHA-256 .*expected 00"
  ):
    start(sha256="0" * 64, **options).check()
  path.unlink()
  with pytest.raises(UserError, match="femto.npz' does not exist"):
    start(sha256=digest, **options).check()


@pytest.mark.usefixtures("femto_is_published")
def test_a_run_named_imagenet_is_not_mistaken(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("imagenet").mkdir()  # of data
  assert "to be downloaded" in start().describe()
  pathlib.Path("imagenet/config.gin").write_text("")
  with pytest.raises(UserError, match="write './imagenet' for the run"):
    start().describe()


def test_an_address_belongs_to_no_run():
  assert find_run_dir("https://host.invalid/runs/x/F0_haiku.npz") is None


def test_gin_refuses_other_variants_at_once():
  bindings = ["VARIANT = 'F7'", "WEIGHTS = 'imagenet'"]
  with pytest.raises(UserError, match="no weights of F7"):
    Configuration(["gin/finetune_imagenet.gin"], bindings).build_job()


def test_gin_binds_the_address(server):
  job = Configuration(
    ["gin/finetune_imagenet.gin"],
    [
      "VARIANT = 'F0'",
      "WEIGHTS = 'imagenet'",
      f"pretrained.Published.url = '{server.url}/{{variant}}.npz'",
    ],
  ).build_job()
  words = f"{server.url}/F0.npz, to be downloaded, with a new head"
  assert job.model.init_weights.describe() == words


def test_load_weights_takes_the_name(
  server, femto_is_published, trained, tmp_path
):
  network = nfnets_tf.NFNet("femto", 4)
  published = Published(url=f"{server.url}/x.npz", cache=str(tmp_path))
  load_weights(network, "imagenet", published=published)
  assert same(network, trained)
  plain = keras.Model(network.input, network.output)
  with pytest.raises(UserError, match="'imagenet' has no weights of None"):
    load_weights(plain, "imagenet", published=published)
  assert os.listdir(tmp_path)
