"""A complete training step, against the machine's own limit and against timm.

  python -m benchmarks.training_step --timm=PYTHON

PYTHON is an interpreter with timm and PyTorch; without it there is no such
comparison. Processes take turns, a step each, and only ratios matter. Steps are
complete: AGC, Nesterov momentum, decay, averages of the weights and metrics. Of
timm, eager and compiled, the faster is the peer. The last line is JSON:

  POLICY_over_matmul    operations of convolutions and products per second, over
                        those of a product of large matrices
  POLICY_over_timm      speed over timm's, at the batch where it is smaller
  optimizer_share       of the step: AGC, decay, momentum and averages
  standardization_share of the step: standardized kernels and their gradients
  loop_over_bare        the training loop's step over one without loop, guard,
                        metrics and telemetry
  first_step_seconds    from the network's creation to the end of a first step
  POLICY_peak_gb        the largest memory of the process up to there
  POLICY_over_sum       what the step added to it, over the sum of weights,
                        gradients, momentum, averages and the inputs and outputs
                        of convolutions, which the backward pass needs
"""

from __future__ import annotations

import csv
import json
import resource
import statistics
import sys
import time

import numpy as np
from absl import flags

from benchmarks import entry
from benchmarks.lockstep import Worker, serve
from benchmarks.timing import (
  median_ratio,
  noise,
  seconds_side_by_side,
  train_steps,
)

_VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 192, "Pixels per side.")
_BATCHES = flags.DEFINE_list("batches", ["8", "32"], "Images per step.")
_POLICIES = flags.DEFINE_list(
  "policies", ["float32", "mixed_bfloat16"], "Keras' precision policies."
)
_RECOMPUTE = flags.DEFINE_bool(
  "recompute", False, "Whether blocks are computed again in the backward pass."
)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Steps to time.")
_TIMM = flags.DEFINE_string("timm", None, "Interpreter that has timm.")
_COMPILED = flags.DEFINE_bool("compiled", True, "Try torch.compile as well.")
_OUTPUT = flags.DEFINE_string("output", None, "CSV file of all seconds.")
_SERVE = flags.DEFINE_string("serve", None, "Used by the processes themselves.")
_MATRIX = 2048  # rows and columns of the matrices of the reference product


def main() -> None:
  """Prints seconds and, last, the figures as JSON."""
  if _SERVE.value:
    policy, batch = _SERVE.value.split(":")
    _serve_ours(policy, int(batch))
    return
  seconds, facts = {}, {}
  for policy in _POLICIES.value:
    for batch in map(int, _BATCHES.value):
      seconds[policy, batch], facts[policy, batch] = _measure(policy, batch)
  if _OUTPUT.value:
    _write(seconds)
  print(json.dumps(_figures(seconds, facts)))


def _measure(policy: str, batch: int) -> tuple[dict, dict]:
  """Returns ({name of the work: seconds of each round}, our facts)."""
  options = [a for a in sys.argv[1:] if not a.startswith("--serve")]
  module = "benchmarks.training_step"
  ours = Worker(sys.executable, module, f"--serve={policy}:{batch}", *options)
  workers = {"ours": ours}
  if _TIMM.value:
    for compiled in [False, True][: 1 + _COMPILED.value]:
      job = {
        "variant": _VARIANT.value,
        "dtype": policy.removeprefix("mixed_"),
        "batch": batch,
        "size": _IMAGE_SIZE.value,
        "compiled": compiled,
      }
      name = "timm compiled" if compiled else "timm"
      workers[name] = Worker(
        _TIMM.value, "benchmarks.timm_step", json.dumps(job)
      )
  work = {"matmul": lambda: ours("matmul"), **workers}
  if batch == max(map(int, _BATCHES.value)):
    for name in ("bare", "optimizer", "standardization"):
      work[name] = lambda name=name: ours(name)
  # A pause, so that no runtime's idle threads spin into another's turn.
  seconds = seconds_side_by_side(
    work, rounds=_ROUNDS.value, prepare=lambda: time.sleep(0.1)
  )
  for name, worker in workers.items():
    print(f"{name}: {worker.facts}")
    worker.close()
  for name, times in seconds.items():
    spread = f"{min(times) * 1e3:.0f}-{max(times) * 1e3:.0f}"
    median = statistics.median(times) * 1e3
    print(f"{policy:>15} {batch:3} {name:>16} {median:8.0f} ms ({spread})")
  sys.stdout.flush()
  return seconds, ours.facts


def _figures(seconds: dict, facts: dict) -> dict[str, float]:
  """Returns the figures of the last line."""
  figures = {}
  for policy in _POLICIES.value:
    name = policy.removeprefix("mixed_")
    batches = [b for p, b in seconds if p == policy]
    timed, fact = seconds[policy, batches[-1]], facts[policy, batches[-1]]
    operations = fact["step_flops"] / fact["matmul_flops"]
    ratio = operations * median_ratio(timed["matmul"], timed["ours"])
    figures[f"{name}_over_matmul"] = ratio
    figures[f"{name}_peak_gb"] = fact["peak_gb"]
    added = fact["peak_gb"] - fact["before_gb"]
    figures[f"{name}_over_sum"] = added / fact["sum_gb"]
    peers = [n for n in timed if n.startswith("timm")]
    over = [
      median_ratio(seconds[policy, b][n], seconds[policy, b]["ours"])
      for b in batches
      for n in peers
    ]
    if over:
      figures[f"{name}_over_timm"] = min(over)
  policy = _POLICIES.value[0]
  timed = seconds[policy, max(map(int, _BATCHES.value))]
  for part in ("optimizer", "standardization"):
    figures[f"{part}_share"] = median_ratio(timed[part], timed["ours"])
  figures["loop_over_bare"] = median_ratio(timed["ours"], timed["bare"])
  first = [fact["first_step_seconds"] for fact in facts.values()]
  figures["first_step_seconds"] = max(first)
  return {name: round(value, 3) for name, value in figures.items()}


def _write(seconds: dict) -> None:
  with open(_OUTPUT.value, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["policy", "batch", "work", "round", "seconds"])
    for (policy, batch), timed in seconds.items():
      for name, times in timed.items():
        for turn, value in enumerate(times):
          writer.writerow([policy, batch, name, turn, f"{value:.6f}"])


def _serve_ours(policy: str, batch: int) -> None:
  """Does our step and its parts, in a process of their own."""
  import tensorflow as tf

  from nfnets_tf.keras_api import keras
  from nfnets_tf.models.cost import count_activations, count_macs
  from nfnets_tf.models.nfnet import NFNet
  from nfnets_tf.optim.sgd import SGD
  from nfnets_tf.train.classifier import Classifier

  keras.mixed_precision.set_global_policy(policy)
  before = _peak_gb()
  start, size = time.perf_counter(), _IMAGE_SIZE.value
  network = NFNet(_VARIANT.value, 1000, recompute=_RECOMPUTE.value)
  model = Classifier(network)
  model.compile(SGD(0.1, weight_decay=2e-5))
  images = noise(batch, size)
  labels = np.zeros([batch], np.int32)
  step = train_steps(model, images, labels)
  step()
  first, peak = time.perf_counter() - start, _peak_gb()
  number = 2 if policy == "mixed_bfloat16" else 4  # bytes of an activation
  activations = batch * number * count_activations(network, size)
  facts = {
    "versions": f"tensorflow {tf.__version__}",
    "first_step_seconds": first,
    "before_gb": before,
    "peak_gb": peak,
    "sum_gb": (4 * 4 * network.count_params() + activations) / 1e9,
    "step_flops": 6 * count_macs(network, size) * batch,
    "parameters": network.count_params(),
    "matmul_flops": 2 * _MATRIX**3,
  }
  matrix = tf.random.normal([_MATRIX, _MATRIX])
  matrix = tf.cast(matrix, keras.mixed_precision.global_policy().compute_dtype)
  work = {"ours": step, "matmul": lambda: _wait(matrix @ matrix)}
  serve({**work, **_parts(model, images, labels)}, facts)


def _peak_gb() -> float:
  """Returns the largest memory of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _wait(tensor) -> None:
  """Returns when a tensor has been computed, without copying it."""
  tensor[:1, :1].numpy()


def _parts(model, images, labels) -> dict:
  """Returns functions that run parts of a model's step.

  They change its weights by gradients that mean nothing, which takes as long.
  """
  import tensorflow as tf

  from nfnets_tf.models.layers import WSConv2D
  from nfnets_tf.ops.losses import softmax_cross_entropy
  from nfnets_tf.ops.weight_standardization import trainable_standardize
  from nfnets_tf.optim import ema

  network, optimizer = model.network, model.optimizer
  variables = network.trainable_variables
  images, labels = tf.constant(images), tf.constant(labels)
  convolutions = [
    layer for layer in network.submodules if isinstance(layer, WSConv2D)
  ]
  fixed = [tf.random.normal(v.shape, stddev=1e-3) for v in variables]

  def update(gradients):
    optimizer.apply_gradients(
      zip(gradients, variables), skip_gradients_aggregation=True
    )
    strategy = tf.distribute.get_strategy()
    strategy.run(ema.update, args=(model.averages, variables, 0.99999))

  @tf.function
  def bare():
    with tf.GradientTape() as tape:
      logits = network(model.normalize(images), training=True)
      losses = softmax_cross_entropy(logits, labels, label_smoothing=0.1)
      loss = tf.reduce_mean(losses)
    update(tape.gradient(loss, variables))
    return loss

  @tf.function
  def optimize():
    update(fixed)
    return tf.reshape(variables[0], [-1])[0]

  @tf.function
  def standardize_all():
    total = 0.0
    for layer in convolutions:
      with tf.GradientTape() as tape:
        kernel = trainable_standardize(
          layer.kernel, layer.gain, layer.compute_dtype
        )
      gradients = tape.gradient(kernel, [layer.kernel, layer.gain])
      total += tf.reshape(gradients[0], [-1])[0]
    return total

  parts = {
    "bare": bare,
    "optimizer": optimize,
    "standardization": standardize_all,
  }
  return {name: lambda f=f: f().numpy() for name, f in parts.items()}


if __name__ == "__main__":
  entry.run(main)
