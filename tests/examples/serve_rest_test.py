"""The stand-in for TensorFlow Serving, over real HTTP on the loopback."""

import base64
import collections
import concurrent.futures
import http.client
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data import preprocessing
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.serving.export import export_saved_model
from nfnets_tf.train.classifier import Classifier

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "serve_rest.py"
NAMES = ["ant", "bee", "cat"]
CLIENTS = 8


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A folder of versions, the newest of which is served."""
  folder = tmp_path_factory.mktemp("served")
  model = Classifier(NFNet("femto", 3, skip_gain=1.0))
  for variable in model.network.weights:
    variable.assign_add(0.3 * tf.random.normal(variable.shape))
  model.restart_averages()
  export_saved_model(
    model,
    str(folder / "10"),
    class_names=NAMES,
    transforms=[preprocessing.SquashCenterCrop(image_size=32, margin=4)],
  )
  shutil.copytree(folder / "10", folder / "2")
  return folder


@pytest.fixture(scope="module")
def port(exported):
  """A server in a separate process, which can import only TensorFlow."""
  command = [sys.executable, str(EXAMPLE), f"--model_dir={exported}"]
  server = subprocess.Popen(
    [*command, "--name=insects", "--port=0"],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  address = server.stdout.readline()
  assert address.startswith("http://127.0.0.1:"), server.stderr.read()
  yield int(address.split(":")[2].split("/")[0])
  assert server.poll() is None  # nothing that was sent has ended it
  server.kill()
  server.communicate()


@pytest.fixture(scope="module")
def served(exported):
  return tf.saved_model.load(str(exported / "10"))


def ask(port, body, path="/v1/models/insects:predict", method="POST"):
  """Returns (status, answer)."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  try:
    text = body if isinstance(body, (bytes, str)) else json.dumps(body)
    connection.request(method, path, text)
    response = connection.getresponse()
    return response.status, json.loads(response.read())
  finally:
    connection.close()


def b64(data):
  return {"b64": base64.b64encode(data).decode()}


def picture(seed):
  """A picture of its own size and kind: (pixels, encoded)."""
  r = np.random.default_rng(seed)
  shape = [*r.integers(8, 60, 2), 3]
  pixels = (r.integers(0, 255, shape) * r.uniform(0, 1, 3)).astype(np.uint8)
  if seed % 2:
    return pixels, tf.io.encode_png(pixels).numpy()
  encoded = tf.io.encode_jpeg(pixels).numpy()
  return tf.io.decode_jpeg(encoded).numpy(), encoded


def of_bytes(*encoded):
  rows = [b64(data) for data in encoded]
  return {"signature_name": "serving_bytes", "instances": rows}


# By kind: (what is sent for a seed, part of the answer's error).
BROKEN = {
  "cut": (lambda s: of_bytes(picture(s)[1][:40]), ""),
  "no image": (
    lambda s: of_bytes(b"GIF" + bytes([s % 251]) * 30),
    "no JPEG, PNG, GIF or BMP",
  ),
  "one of two": (lambda s: of_bytes(picture(s)[1], b"nothing"), ""),
  "no base64": (
    lambda s: {
      "signature_name": "serving_bytes",
      "instances": [{"b64": "a%"}],
    },
    "Failed to process the input 'encoded'",
  ),
  "no JSON": (lambda s: '{"instances": [', "JSON Parse error"),
  "no end of brackets": (lambda s: "[" * 100_000, "JSON Parse error"),
  "no number": (
    lambda s: '{"inputs": [[[[1' + "0" * 400 + ", 2, 3]]]]}",
    "Failed to process the input 'images'",
  ),
  "no signature": (
    lambda s: {"signature_name": "x", "instances": [1]},
    "Serving signature name 'x' not found",
  ),
  "ragged": (
    lambda s: {"instances": [[[[1, 2, 3]], [[1, 2]]]]},
    "Failed to process the input 'images'",
  ),
  "gray": (
    lambda s: {"instances": np.zeros([1, 4, 4, 1]).tolist()},
    "has the shape (1, 4, 4, 1), expected (None, None, None, 3)",
  ),
  "nothing": (lambda s: {}, 'Give either "instances" or "inputs"'),
}


def request(seed, port):
  """Sends the seed's request; returns (its kind, what came of it)."""
  if seed % 7 == 3:
    kind = list(BROKEN)[seed // 7 % len(BROKEN)]
    make, part = BROKEN[kind]
    status, answer = ask(port, make(seed))
    assert status == 400 and list(answer) == ["error"], (kind, answer)
    assert part in answer["error"] and "\n" not in answer["error"]
    return kind, None
  pixels, encoded = picture(seed)
  if seed % 3:
    status, answer = ask(port, of_bytes(encoded))
  else:
    status, answer = ask(port, {"instances": [pixels.tolist()]})
  assert status == 200, answer
  (row,) = answer["predictions"]
  return "image", row


@pytest.mark.parametrize(
  "requests", [200, pytest.param(1_000, marks=pytest.mark.soak)]
)
def test_answers_requests_of_eight_clients(port, served, requests):
  with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
    answers = list(clients.map(lambda s: request(s, port), range(requests)))
  kinds = collections.Counter(kind for kind, _ in answers)
  assert set(kinds) == {"image", *BROKEN}
  assert kinds["image"] == requests - len(range(3, requests, 7))
  for seed in range(0, requests, 10):
    kind, row = answers[seed]
    if kind != "image":
      continue
    expected = served(tf.constant(picture(seed)[0][None]))
    np.testing.assert_allclose(row["logits"], expected["logits"][0], atol=1e-4)
    assert row["classes"] == expected["classes"][0].numpy().decode()
    assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_columns_rows_and_versions(port, served):
  pixels, encoded = picture(5)
  logits = served(tf.constant(pixels[None]))["logits"].numpy()
  image = pixels[None].tolist()
  for path in ("/v1/models/insects", "/v1/models/insects/versions/10"):
    for body in (
      {"inputs": image},
      {"inputs": {"images": image}},
      {"inputs": image, "signature_name": "serving_uint8"},
      {"inputs": [b64(encoded)], "signature_name": "serving_bytes"},
    ):
      status, answer = ask(port, body, f"{path}:predict")
      assert status == 200, answer
      np.testing.assert_allclose(answer["outputs"]["logits"], logits, atol=1e-4)
  rows = [{"images": row} for row in image * 2]
  _, answer = ask(port, {"instances": rows})
  assert len(answer["predictions"]) == 2
  # A single output has no name.
  body = {"instances": image, "signature_name": "features"}
  _, answer = ask(port, body)
  (features,) = answer["predictions"]
  expected = served.signatures["features"](
    images=tf.constant(pixels[None], tf.float32)
  )
  np.testing.assert_allclose(features, expected["features"][0], atol=1e-4)


def test_reports_its_status(port):
  status, answer = ask(port, b"", "/v1/models/insects", "GET")
  assert status == 200
  (version,) = answer["model_version_status"]
  assert version["version"] == "10" and version["state"] == "AVAILABLE"


@pytest.mark.parametrize(
  "path, complaint",
  [
    ("/v1/models/other:predict", "Servable not found: other"),
    ("/v1/models/insects/versions/2:predict", "insects, version 2; here is"),
    ("/v1/models/insects", "Malformed request: POST /v1/models/insects"),
    ("/", "Malformed request: POST /"),
  ],
)
def test_unknown_paths_are_not_found(port, path, complaint):
  status, answer = ask(port, {"instances": [1]}, path)
  assert status == 404 and complaint in answer["error"]


def test_numbers_must_fit_the_type(port):
  body = {"signature_name": "serving_uint8", "inputs": [[[[256, 0, 0]]]]}
  status, answer = ask(port, body)
  assert status == 400 and "not of type uint8" in answer["error"]


def test_too_much_is_not_read(port):
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  connection.putrequest("POST", "/v1/models/insects:predict")
  connection.putheader("Content-Length", str(1 << 40))
  connection.endheaders()
  assert connection.getresponse().status == 413
  connection.close()


def test_directory_without_versions_is_reported(tmp_path):
  done = subprocess.run(
    [sys.executable, str(EXAMPLE), f"--model_dir={tmp_path}"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].endswith(
    "holds no numbered versions, such as 1/"
  )
