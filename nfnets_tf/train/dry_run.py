"""Describes a run and estimates its cost, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.train.distribution import describe

if TYPE_CHECKING:
  from nfnets_tf.data.dataset_info import SplitInfo
  from nfnets_tf.data.pipeline import Split
  from nfnets_tf.optim.sam import SAM
  from nfnets_tf.train.run_config import (
    DataConfig,
    DeviceConfig,
    ModelConfig,
    OptimizationConfig,
    Schedule,
  )

# (title, text) of each line; a line without a title continues the one before.
Lines = list[tuple[str, str]]

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 48
# The paper's batch per device, and the chips of a TPU-v4 host.
_IMAGES_PER_CHIP, _CHIPS_PER_HOST = 32, 4
_FLOAT32_BYTES = 4
# An F0 at 224 px in bfloat16, compiled for a TPU v4 without running it, takes
# 61 MB per image, against 53 MB for the outputs of its convolutions. On a CPU
# nothing is recomputed: a process that trains F0 at 128 px grew by 2.2
# (bfloat16) to 2.9 (float32) times that.
_MEMORY_OVER_CONVOLUTIONS = 1.15
_CPU_FACTOR = 3


def format_table(lines: Lines) -> str:
  """Returns lines with their titles in a column of equal width."""
  width = max(len(title) for title, _ in lines)
  return "\n".join(f"{title:<{width}}  {text}" for title, text in lines)


class Memory(NamedTuple):
  """Memory of a training step on one device, in bytes.

  Attributes:
    fixed: of weights, gradients, momentum, averages, and SAM's copies.
    per_image: of each image that is computed at a time.
  """

  fixed: int
  per_image: int


def estimate_memory(
  network: keras.Model, *, image_size: int, sam: SAM | None, policy: str
) -> Memory:
  """Estimates the memory of a training step; creates no weights.

  Args:
    network: may be one without weights, of `cost.abstractly`.
    image_size: height and width of training images, in pixels.
    sam: of the training step, or None.
    policy: Keras' precision policy.
  """
  parameters = sum(cost.count_parameters(network))
  # Weights, gradients, momentum and averages; whether there are averages only
  # the classifier knows, which is not built. SAM copies weights and gradients.
  copies = 4 if sam is None else 6
  bytes_each = 2 if "16" in policy else _FLOAT32_BYTES
  activations = cost.count_activations(network, image_size) * bytes_each
  return Memory(
    copies * _FLOAT32_BYTES * parameters,
    round(_MEMORY_OVER_CONVOLUTIONS * activations),
  )


def describe_memory(memory: Memory, replica_batch: int | None = None) -> str:
  """Returns an estimate in words.

  Args:
    memory: the estimate.
    replica_batch: images per device; None if unknown.
  """
  fixed, per_image = memory
  text = f"about {_in_bytes(fixed)} per device plus {_in_bytes(per_image)} per"
  text += f" image at a time, compiled (on a CPU up to {_CPU_FACTOR} times as"
  text += " much per image)"
  if replica_batch is not None:
    total = _in_bytes(fixed + replica_batch * per_image)
    text += f", {total} for {replica_batch} images per device"
  return text


def _in_bytes(count: int) -> str:
  for unit, scale in (("GB", 1e9), ("MB", 1e6)):
    if count >= scale:
      return f"{count / scale:,.1f} {unit}"
  return f"{count / 1e3:,.1f} kB"


def describe_network(
  build: Callable[[], keras.Model], image_size: int
) -> tuple[Lines, int]:
  """Returns (lines about an NFNet, its MACs at `image_size` pixels)."""
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
    ("MACs", f"{macs:,} per image of {image_size} px ({macs / 1e9:.1f} G)"),
  ], macs


def describe_length(
  num_examples: int, batch_size: int, steps: int, multiplicity: int
) -> Lines:
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


def describe_learning_rate(
  schedule: keras.optimizers.schedules.LearningRateSchedule, total_steps: int
) -> Lines:
  """Returns lines that tabulate and sketch the learning rate's curve."""
  points = ", ".join(
    f"{float(schedule(round(fraction * total_steps))):.3g} at {fraction:.0%}"
    for fraction in (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
  )
  rates = [
    float(schedule((i + 0.5) / _CURVE_WIDTH * total_steps))
    for i in range(_CURVE_WIDTH)
  ]
  top = max(max(rates), 1e-12)
  bars = "".join(_BARS[min(7, int(8 * rate / top))] for rate in rates)
  return [("learning rate", points), ("", bars)]


def describe_reading(split: Split, num_examples: int, batch_size: int) -> Lines:
  """Returns lines about what each host reads."""
  pattern = f"{split.directory}/{split.split}-*"
  hosts = max(1, batch_size // (_IMAGES_PER_CHIP * _CHIPS_PER_HOST))
  return [
    (
      "reading",
      f"{pattern}, reshuffled each epoch; each of n hosts reads 1/n",
    ),
    (
      "",
      f"at {_IMAGES_PER_CHIP} images per chip and {_CHIPS_PER_HOST} chips per"
      f" host: {hosts} host{'s' * (hosts > 1)}, each"
      f" {batch_size // hosts:,} images per step and"
      f" {num_examples // hosts:,} per epoch",
    ),
  ]


def describe_gradient(sam: SAM | None) -> Lines:
  """Returns a line about SAM, none without it."""
  if sam is None:
    return []
  scopes = {
    "micro_batch": "for each micro-batch",
    "replica": "for each replica",
    "global": "for the whole batch",
  }
  every = "every step" if sam.every == 1 else f"one step in {sam.every}"
  return [
    (
      "gradient",
      f"SAM, rho {sam.rho:g} {scopes[sam.scope]}, ascent on"
      f" {sam.ascent_fraction:.0%} of it, {every}",
    )
  ]


def describe_compute(
  compute, variant: str, macs: int, images: int, epochs, sam: SAM | None
) -> Lines:
  """Returns lines about TPU-v4 core-hours, by FLOPs and in the paper.

  Args:
    compute: a `scaling.compute.TpuV4`.
    variant: of the network.
    macs: of one image's forward pass.
    images: of the run.
    epochs: of the run, as the paper counts them.
    sam: of the training step, or None.
  """
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


def describe_run(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  schedule: Schedule,
  devices: DeviceConfig,
) -> Lines:
  """Returns all lines about a run; creates no weights, reads no data."""
  images = schedule.total_steps * data.batch_size
  epochs = images / data.num_examples
  size = data.train_split.image_shape()[0]
  network = cost.abstractly(model.network)
  lines, macs = describe_network(lambda: network, size)
  sam = optimization.sam
  memory = estimate_memory(
    network, image_size=size, sam=sam, policy=devices.policy
  )
  strategy = f"{devices.strategy.__name__}, {devices.policy}"
  return [
    *lines,
    ("start", model.init_weights.describe()),
    *describe_length(
      data.num_examples,
      data.batch_size,
      schedule.total_steps,
      data.train_split.augmentation.multiplicity,
    ),
    *describe_learning_rate(optimization.learning_rate, schedule.total_steps),
    ("strategy", f"{strategy}, {schedule.steps_per_execution} steps per call"),
    *describe_reading(data.train_split, data.num_examples, data.batch_size),
    ("memory", describe_memory(memory)),
    *describe_gradient(sam),
    *describe_compute(
      devices.compute, model.variant, macs, images, round(epochs, 4), sam
    ),
  ]


def describe_start(
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
    optimization: SAM.
    data: batch size and directory.
    total_steps: of the run.
    strategy: the devices.
    train: the training split.
  """
  first = (
    f"Training NFNet {model.variant} on {describe(strategy)}:"
    f" {total_steps:,} steps of {data.batch_size:,} images,"
    f" {train.num_examples:,} images per epoch from {len(train.files)} shards"
    f" in {data.train_split.directory}."
  )
  lines = describe_gradient(optimization.sam)
  return [first, *(f"Gradients by {line}." for _, line in lines)]


def estimate_costs(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  schedule: Schedule,
  devices: DeviceConfig,
  *,
  network: keras.Model | None = None,
) -> dict[str, float]:
  """Estimates the cost of a run.

  Args:
    model: the variant and the network.
    optimization: SAM's passes.
    data: batch size, examples and image size.
    schedule: steps.
    devices: the model of compute and the precision.
    network: the network, if it has been built.

  Returns:
    parameters; macs of an image's forward pass; images, steps and epochs;
    flops of the run; tpu_v4_core_hours at utilization, in (0, 1]; and
    memory_bytes of a device, plus memory_bytes_per_image computed at a time.
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
    "memory_bytes_per_image": memory.per_image,
  }
