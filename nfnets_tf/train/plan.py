"""What a run would do, in words and numbers, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.models import cost
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.distribution import describe
from nfnets_tf.train.memory import describe_memory, estimate_memory
from nfnets_tf.train.run_config import (
  DataConfig,
  DeviceConfig,
  ModelConfig,
  OptimizationConfig,
  Schedule,
)

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 48
# Published per-device batch and the chips of a TPU-v4 host.
_IMAGES_A_CHIP, _CHIPS_A_HOST = 32, 4


def describe_network(build: Callable[[], keras.Model], image_size: int):
  """Returns (lines about the network, its MACs at `image_size`)."""
  network = cost.abstractly(build)
  body, head = cost.count_parameters(network)
  macs = cost.count_macs(network, image_size)
  config = network.get_config()
  return [
    ("model", f"NFNet {config['variant']}, {config['num_classes']:,} classes"),
    (
      "parameters",
      f"{body + head:,} = {body:,} body + {head:,} head"
      f" ({(body + head) / 1e6:,.1f} M)",
    ),
    ("MACs", f"{macs:,} an image at {image_size} px ({macs / 1e9:.1f} G)"),
  ], macs


def describe_length(
  num_examples: int, batch_size: int, steps: int, multiplicity: int
):
  """Returns lines about images, epochs and steps."""
  images = steps * batch_size
  epochs = images / multiplicity / num_examples
  copies = f", {multiplicity} times each" if multiplicity > 1 else ""
  return [
    (
      "images",
      f"{images:,} = {epochs:.4g} epochs of {num_examples:,}{copies}",
    ),
    ("steps", f"{steps:,} at batch {batch_size:,}"),
  ]


def describe_learning_rate(schedule, total_steps: int):
  """Returns lines that tabulate and sketch the learning rate's curve."""
  shares = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
  points = ", ".join(
    f"{float(schedule(round(share * total_steps))):.3g} at {share:.0%}"
    for share in shares
  )
  rates = [
    float(schedule((i + 0.5) / _CURVE_WIDTH * total_steps))
    for i in range(_CURVE_WIDTH)
  ]
  top = max(max(rates), 1e-12)
  bars = "".join(_BARS[min(7, int(8 * rate / top))] for rate in rates)
  return [("learning rate", points), ("", bars)]


def describe_reading(split, num_examples: int, batch_size: int):
  """Returns lines that say what each host would read."""
  pattern = f"{split.directory}/{split.split}-*"
  hosts = max(1, batch_size // (_IMAGES_A_CHIP * _CHIPS_A_HOST))
  return [
    (
      "reading",
      f"{pattern}, in another order each epoch, of which each of n hosts"
      " reads the n-th part",
    ),
    (
      "",
      f"at {_IMAGES_A_CHIP} images a chip and {_CHIPS_A_HOST} chips a host:"
      f" {hosts} host{'s' * (hosts > 1)}, {batch_size // hosts:,} images a step"
      f" and {num_examples // hosts:,} an epoch each",
    ),
  ]


def describe_gradient(sam: SAM | None):
  """Returns lines about how a step's gradient is taken."""
  if sam is None:
    return []
  scopes = {
    "micro_batch": "of each micro-batch alone",
    "replica": "of each replica alone",
    "global": "of the whole batch",
  }
  every = "every step" if sam.every == 1 else f"one step in {sam.every}"
  return [
    (
      "gradient",
      f"SAM, rho {sam.rho:g} {scopes[sam.scope]}, from"
      f" {sam.ascent_fraction:.0%} of it, {every}",
    )
  ]


def describe_compute(
  compute, variant: str, macs: int, images: int, epochs, sam: SAM | None
):
  """Returns lines about TPU-v4 core-hours: the paper's and the FLOPs'."""
  passes = 1.0 if sam is None else sam.passes
  hours = compute.core_hours(macs, passes * images, variant)
  lines = [
    (
      "compute",
      f"{hours:,.0f} TPU-v4 core-hours by its FLOPs at"
      f" {compute.utilization_of(variant):.0%} of the peak",
    )
  ]
  published = compute.published_core_hours(variant, epochs)
  if published is not None:
    lines.append(
      (
        "",
        f"{published:,} TPU-v4 core-hours in the paper's figure 2"
        f" ({variant}, {epochs:g} epochs of JFT-4B)",
      )
    )
  return lines


def announcement(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  total_steps: int,
  strategy: tf.distribute.Strategy,
  train: SplitInfo,
) -> list[str]:
  """Returns the lines that are logged when training begins.

  Args:
    model: the variant.
    optimization: how gradients are taken.
    data: batch size and location.
    total_steps: of the run.
    strategy: the devices.
    train: index of the training split.
  """
  first = (
    f"Training NFNet {model.variant} on {describe(strategy)}:"
    f" {total_steps:,} steps of {data.batch_size:,} images,"
    f" {train.num_examples:,} images an epoch from {len(train.files)} shards in"
    f" {data.train_split.directory}."
  )
  lines = describe_gradient(optimization.sam)
  return [first, *(f"Gradients by {line}." for _, line in lines)]


def describe_run(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  schedule: Schedule,
  devices: DeviceConfig,
) -> list[tuple[str, str]]:
  """Returns all lines about a run; makes no weights and reads no data."""
  images = schedule.total_steps * data.batch_size
  epochs = images / data.num_examples
  size = data.train_split.image_shape()[0]
  calls = f"{schedule.steps_per_execution} steps a call"
  network = cost.abstractly(model.network)
  lines, macs = describe_network(lambda: network, size)
  rate, sam = optimization.learning_rate, optimization.sam
  memory = estimate_memory(
    network, image_size=size, sam=sam, policy=devices.policy
  )
  return [
    *lines,
    ("start", model.init_weights.describe()),
    *describe_length(
      data.num_examples,
      data.batch_size,
      schedule.total_steps,
      data.train_split.multiplicity,
    ),
    *describe_learning_rate(rate, schedule.total_steps),
    ("strategy", f"{devices.strategy.__name__}, {devices.policy}, {calls}"),
    *describe_reading(data.train_split, data.num_examples, data.batch_size),
    ("memory", describe_memory(memory)),
    *describe_gradient(sam),
    *describe_compute(
      devices.compute, model.variant, macs, images, round(epochs, 4), sam
    ),
  ]


def figures(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  schedule: Schedule,
  devices: DeviceConfig,
  *,
  network: keras.Model | None = None,
) -> dict[str, float]:
  """Returns the cost of a run, in numbers.

  Args:
    model: the variant and the network.
    optimization: SAM's passes.
    data: batch size, examples and image size.
    schedule: steps.
    devices: the model of compute and the precision.
    network: the network, if it has been built.

  Returns:
    parameters; macs of an image's forward pass; images, steps and epochs;
    flops of all; tpu_v4_core_hours at utilization; and the bytes of memory that
    a device needs for weights, and for each image that is computed at a time.
  """
  network = network or cost.abstractly(model.network)
  images = schedule.total_steps * data.batch_size
  size = data.train_split.image_shape()[0]
  macs = cost.count_macs(network, size)
  sam, compute = optimization.sam, devices.compute
  passes = 1.0 if sam is None else sam.passes
  memory = estimate_memory(
    network, image_size=size, sam=sam, policy=devices.policy
  )
  return {
    "parameters": sum(cost.count_parameters(network)),
    "macs": macs,
    "images": images,
    "steps": schedule.total_steps,
    "epochs": images / data.num_examples,
    "flops": compute.flops(macs, passes * images),
    "tpu_v4_core_hours": compute.core_hours(
      macs, passes * images, model.variant
    ),
    "utilization": compute.utilization_of(model.variant),
    "memory_bytes": memory.fixed,
    "memory_bytes_an_image": memory.an_image,
  }


def table(lines: list[tuple[str, str]]) -> str:
  """Returns the lines with their names in one column."""
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
