"""Serves a SavedModel over HTTP, as TensorFlow Serving's REST API does.

  python examples/serve_rest.py --model_dir=runs/quickstart/saved_model

A stand-in for TensorFlow Serving on one machine: the newest version of one
model, no batching over requests, no gRPC, no TLS, no authentication, 127.0.0.1.

  POST /v1/models/NAME:predict           {"instances": [...]} or {"inputs": ...}
  POST /v1/models/NAME/versions/N:predict
  GET  /v1/models/NAME

Strings are sent as {"b64": "..."}. Errors are {"error": "..."} with the status
400, 404 or 413.
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
PATH = re.compile(r"/v1/models/([\w.-]+)(?:/versions/(\d+))?(:predict)?")


class RequestError(Exception):
  """Args: the HTTP status, and a sentence."""


def parse_tensor(value, spec: tf.TensorSpec) -> tf.Tensor:
  """Returns the tensor of a signature's input that JSON lists state."""

  def decode(item):
    if isinstance(item, list):
      return [decode(part) for part in item]
    return base64.b64decode(item["b64"], validate=True)

  try:
    if spec.dtype == tf.string:
      array = np.array(decode(value), object)
    else:
      array = np.array(value, np.float64)
    tensor = tf.constant(array.astype(spec.dtype.as_numpy_dtype))
    if spec.dtype.is_integer and np.any(tensor.numpy() != array):
      raise ValueError(f"a number is not of type {spec.dtype.name}")
  except (ValueError, TypeError, KeyError, OverflowError) as error:
    message = f"Failed to process the input {spec.name!r}: {error}"
    raise RequestError(400, message) from error
  if not spec.shape.is_compatible_with(tensor.shape):
    message = f"has the shape {tensor.shape}, expected {spec.shape}"
    raise RequestError(400, f"The input {spec.name!r} {message}")
  return tensor


def parse_inputs(request: dict, specs: dict) -> dict:
  """Returns {input: JSON value} of a request in rows or columns."""
  if ("instances" in request) == ("inputs" in request):
    raise RequestError(400, 'Give either "instances" or "inputs"')
  given = request.get("inputs", request.get("instances"))
  if "instances" in request and isinstance(given, list) and given:
    if all(isinstance(row, dict) and set(row) == set(specs) for row in given):
      given = {name: [row[name] for row in given] for name in specs}
  if len(specs) == 1 and not (
    isinstance(given, dict) and set(given) & {*specs}
  ):
    given = dict.fromkeys(specs, given)  # one input needs no name
  if not isinstance(given, dict) or set(given) != set(specs):
    raise RequestError(400, f"Expected the inputs {', '.join(specs)}")
  return given


def predict(signatures, request: dict) -> dict:
  """Returns the answer to the body of a request."""
  name = request.get("signature_name", "serving_default")
  if not isinstance(name, str) or name not in signatures:
    raise RequestError(400, f"Serving signature name {name!r} not found")
  (specs,) = signatures[name].structured_input_signature[1:]
  given = parse_inputs(request, specs)
  inputs = {key: parse_tensor(given[key], spec) for key, spec in specs.items()}
  try:
    outputs = signatures[name](**inputs)
  except tf.errors.OpError as error:  # the first line that is not about graphs
    graph = ("Graph execution", "Detected at", "<stack traces", "\t")
    lines = [x for x in error.message.splitlines() if x]
    causes = [line for line in lines if not line.startswith(graph)]
    raise RequestError(400, (causes or lines)[0]) from error
  columns = {
    key: np.char.decode(value.numpy().astype(bytes)).tolist()
    if value.dtype == tf.string
    else value.numpy().tolist()
    for key, value in outputs.items()
  }
  rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
  if len(columns) == 1:  # one output needs no name
    (columns,) = columns.values()
    rows = columns
  if "inputs" in request:
    return {"outputs": columns}
  return {"predictions": rows}


def make_handler(signatures, name: str, version: int):
  """Returns the class that answers requests for one version of a model."""

  class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def respond(self):
      try:
        status, answer = 200, self.answer()
      except RequestError as error:
        status, answer = error.args[0], {"error": error.args[1]}
      body = json.dumps(answer).encode()
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    do_GET = do_POST = respond

    def log_message(self, format, *args):
      del format, args  # silent

    def answer(self) -> dict:
      post = self.command == "POST"
      length = self.headers.get("Content-Length", "" if post else "0")
      if not length.isdigit() or int(length) > MAX_BYTES:
        self.close_connection = True
        raise RequestError(413, f"A body has at most {MAX_BYTES:,} bytes")
      body = self.rfile.read(int(length))
      match = PATH.fullmatch(self.path)
      if not match or bool(match[3]) != post:
        path = f"{self.command} {self.path}"
        raise RequestError(404, f"Malformed request: {path}")
      if match[1] != name or match[2] not in (None, str(version)):
        wanted = f"{match[1]}, version {match[2] or 'latest'}"
        here = f"{name}, version {version}"
        raise RequestError(404, f"Servable not found: {wanted}; here is {here}")
      if not post:
        state = {"version": str(version), "state": "AVAILABLE"}
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{**state, "status": status}]}
      try:
        request = json.loads(body)
      except (ValueError, RecursionError) as error:
        raise RequestError(400, f"JSON Parse error: {error}") from error
      if not isinstance(request, dict):
        raise RequestError(400, "Expected a JSON object")
      return predict(signatures, request)

  return Handler


def main() -> None:
  """Serves until interrupted."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model_dir", required=True)
  parser.add_argument("--name", default="nfnet")
  parser.add_argument("--port", type=int, default=8501, help="0: any free one")
  flags = parser.parse_args()
  names = tf.io.gfile.listdir(flags.model_dir)
  versions = [int(name) for name in names if name.isdigit()]
  if not versions:
    raise SystemExit(
      f"{flags.model_dir!r} holds no numbered versions, such as 1/"
    )
  path = os.path.join(flags.model_dir, str(max(versions)))
  signatures = tf.saved_model.load(path).signatures
  handler = make_handler(signatures, flags.name, max(versions))
  with ThreadingHTTPServer(("127.0.0.1", flags.port), handler) as server:
    address = f"http://127.0.0.1:{server.server_port}"
    print(f"{address}/v1/models/{flags.name}:predict", flush=True)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      pass


if __name__ == "__main__":
  main()
