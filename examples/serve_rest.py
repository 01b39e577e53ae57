"""Serves a SavedModel over HTTP, as TensorFlow Serving's REST API does.

  python examples/serve_rest.py --model_dir=runs/quickstart/saved_model

A stand-in for TensorFlow Serving where that cannot be had, in the standard
library and TensorFlow alone: the newest version of one model, one process, no
batching over requests, no gRPC, no TLS and no authentication. It is for trying
things out on one machine, and listens on 127.0.0.1 only.

  POST /v1/models/NAME:predict           {"instances": [...]} or {"inputs": ...}
  POST /v1/models/NAME/versions/N:predict
  GET  /v1/models/NAME                   is it there?

Strings are sent as {"b64": "..."}. What cannot be used is answered with an
error of its own, {"error": "..."}, and the status 400, 404 or 413.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import tensorflow as tf

MAX_BYTES = 64 << 20  # of a request's body
_PATH = re.compile(r"/v1/models/([\w.-]+)(?:/versions/(\d+))?(:predict)?")


class Refused(Exception):
  """A request that cannot be answered, and the status that says so."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


class ServedModel:
  """The newest version in a folder of versions, 1/, 2/, ..., and its name."""

  def __init__(self, model_dir: str, name: str):
    versions = [int(x) for x in tf.io.gfile.listdir(model_dir) if x.isdigit()]
    if not versions:
      raise SystemExit(f"{model_dir!r} holds no numbered versions, such as 1/")
    self.name, self.version = name, max(versions)
    path = os.path.join(model_dir, str(self.version))
    self._signatures = tf.saved_model.load(path).signatures

  def check(self, name: str, version: str | None) -> None:
    """Raises `Refused` unless this is the model that is meant."""
    if name != self.name or version not in (None, str(self.version)):
      raise Refused(
        404,
        f"Servable not found: {name}, version {version or 'latest'}; here is"
        f" {self.name}, version {self.version}",
      )

  def predict(self, request: dict) -> dict:
    """Answers the body of a request.

    Raises:
      Refused: if it cannot be used.
    """
    name = request.get("signature_name", "serving_default")
    try:
      signature = self._signatures[name]
    except (KeyError, TypeError):
      raise Refused(400, f"Serving signature name {name!r} not found") from None
    (specs,) = signature.structured_input_signature[1:]
    by_row = "instances" in request
    if by_row == ("inputs" in request):
      raise Refused(400, 'Give either "instances" or "inputs"')
    given = (
      _columns(request["instances"], specs) if by_row else request["inputs"]
    )
    if len(specs) == 1 and not (
      isinstance(given, dict) and set(given) & set(specs)
    ):
      given = dict.fromkeys(specs, given)
    if set(given) != set(specs):
      raise Refused(400, f"Expected the inputs {', '.join(specs)}")
    tensors = {key: _tensor(given[key], spec) for key, spec in specs.items()}
    try:
      answer = signature(**tensors)
    except tf.errors.OpError as error:
      raise Refused(400, _sentence(error)) from error
    lists = {key: _listed(value) for key, value in answer.items()}
    if not by_row:
      return {
        "outputs": next(iter(lists.values())) if len(lists) == 1 else lists
      }
    rows = [dict(zip(lists, row)) for row in zip(*lists.values())]
    if len(lists) == 1:
      rows = next(iter(lists.values()))
    return {"predictions": rows}


def _columns(instances, specs):
  """Turns rows into one list for each input."""
  if not isinstance(instances, list) or not instances:
    raise Refused(400, '"instances" must be a list that is not empty')
  if all(isinstance(row, dict) and set(row) == set(specs) for row in instances):
    return {key: [row[key] for row in instances] for key in specs}
  return instances


def _tensor(value, spec: tf.TensorSpec) -> tf.Tensor:
  """Makes a tensor of what JSON gave."""
  try:
    if spec.dtype == tf.string:
      array = np.array(_decoded(value), object)
    else:
      array = np.array(value, np.float64)
      limits = (
        np.iinfo(spec.dtype.as_numpy_dtype) if spec.dtype.is_integer else None
      )
      if limits and not np.all((array >= limits.min) & (array <= limits.max)):
        raise ValueError(f"a number is not of type {spec.dtype.name}")
    tensor = tf.constant(array, spec.dtype)
  except (ValueError, TypeError, OverflowError) as error:
    raise Refused(
      400, f"Failed to process the input {spec.name!r}: {error}"
    ) from error
  if not spec.shape.is_compatible_with(tensor.shape):
    raise Refused(
      400,
      f"The input {spec.name!r} has the shape {tensor.shape}, expected"
      f" {spec.shape}",
    )
  return tensor


def _decoded(value):
  if isinstance(value, list):
    return [_decoded(one) for one in value]
  if isinstance(value, dict) and set(value) == {"b64"}:
    return base64.b64decode(value["b64"], validate=True)
  raise ValueError('expected strings as {"b64": "..."}')


def _sentence(error: tf.errors.OpError) -> str:
  """Returns what happened, without where in the graph."""
  around = ("Graph execution", "Detected at", "<stack traces", "\t")
  lines = [x for x in error.message.splitlines() if x]
  told = [line for line in lines if not line.startswith(around)]
  return told[0] if told else lines[0]


def _listed(tensor: tf.Tensor):
  array = tensor.numpy()
  if tensor.dtype == tf.string:
    return [text.decode() for text in array.tolist()]
  return array.tolist()


def make_server(model: ServedModel, port: int) -> ThreadingHTTPServer:
  """Returns a server of 127.0.0.1 with a thread for each connection.

  Args:
    model: what is served.
    port: 0 takes one that is free.
  """

  class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
      self._respond(self._status)

    def do_POST(self):
      self._respond(self._predict)

    def log_message(self, format, *args):
      del format, args  # a line for each request is more than one reads

    def _status(self):
      self._check(post=False)
      status = {"error_code": "OK", "error_message": ""}
      version = {"version": str(model.version), "state": "AVAILABLE"}
      return {"model_version_status": [{**version, "status": status}]}

    def _predict(self):
      body = self._body()
      self._check(post=True)
      try:
        request = json.loads(body)
      except (ValueError, RecursionError) as error:
        raise Refused(400, f"JSON Parse error: {error}") from error
      if not isinstance(request, dict):
        raise Refused(400, "Expected a JSON object")
      return model.predict(request)

    def _check(self, post):
      match = _PATH.fullmatch(self.path)
      if not match or bool(match[3]) != post:
        raise Refused(404, f"Malformed request: {self.command} {self.path}")
      model.check(match[1], match[2])

    def _body(self):
      length = self.headers.get("Content-Length", "")
      if not length.isdigit() or int(length) > MAX_BYTES:
        self.close_connection = True
        raise Refused(413, f"A body of at most {MAX_BYTES:,} bytes is read")
      return self.rfile.read(int(length))

    def _respond(self, answer):
      try:
        status, content = 200, answer()
      except Refused as error:
        status, content = error.status, {"error": str(error)}
      body = json.dumps(content).encode()
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

  server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
  server.daemon_threads = True
  return server


def main() -> None:
  """Serves until it is interrupted."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model_dir", required=True)
  parser.add_argument("--name", default="nfnet")
  parser.add_argument("--port", type=int, default=8501)
  flags = parser.parse_args()
  server = make_server(ServedModel(flags.model_dir, flags.name), flags.port)
  print(
    f"http://127.0.0.1:{server.server_port}/v1/models/{flags.name}:predict",
    flush=True,
  )
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    server.server_close()


if __name__ == "__main__":
  main()
