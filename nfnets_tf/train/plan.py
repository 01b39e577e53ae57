"""What a run would do, in words and numbers, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models import cost
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.distribution import describe
from nfnets_tf.train.memory import describe_memory, estimate_memory

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
      f" {compute.utilisation_of(variant):.0%} of the peak",
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


def announcement(job, strategy: tf.distribute.Strategy, train) -> list[str]:
  """Returns what is said when training begins.

  Args:
    job: the `train.TrainJob`.
    strategy: the devices.
    train: index of the training split.
  """
  first = (
    f"Training NFNet {job.variant} on {describe(strategy)}:"
    f" {job.total_steps:,} steps of {job.batch_size:,} images,"
    f" {train.num_examples:,} images an epoch from {len(train.files)} shards in"
    f" {job.train_split.directory}."
  )
  lines = describe_gradient(job.sam)
  return [first, *(f"Gradients by {line}." for _, line in lines)]


def describe_run(job) -> list[tuple[str, str]]:
  """Returns all lines about a run; no weights are made and no data read.

  Args:
    job: the `train.TrainJob`.
  """
  images = job.total_steps * job.batch_size
  epochs = images / job.num_examples
  size = job.train_split.image_shape()[0]
  calls = f"{job.steps_per_execution} steps a call"
  network = cost.abstractly(job.network)
  lines, macs = describe_network(lambda: network, size)
  return [
    *lines,
    ("start", job.start.describe()),
    *describe_length(
      job.num_examples,
      job.batch_size,
      job.total_steps,
      job.train_split.multiplicity,
    ),
    *describe_learning_rate(job.learning_rate, job.total_steps),
    ("strategy", f"{job.strategy.__name__}, {job.policy}, {calls}"),
    *describe_reading(job.train_split, job.num_examples, job.batch_size),
    ("memory", describe_memory(job, network=network)),
    *describe_gradient(job.sam),
    *describe_compute(
      job.compute, job.variant, macs, images, round(epochs, 4), job.sam
    ),
  ]


def figures(job, network: keras.Model | None = None) -> dict[str, float]:
  """Returns what a run would cost, in numbers.

  Args:
    job: the `train.TrainJob`.
    network: its network, if there is one already.

  Returns:
    parameters; macs of an image's forward pass; images, steps and epochs;
    flops of all; tpu_v4_core_hours at utilisation; and the bytes of memory that
    a device needs for weights, and for each image that is computed at a time.
  """
  network = network or cost.abstractly(job.network)
  images = job.total_steps * job.batch_size
  macs = cost.count_macs(network, job.train_split.image_shape()[0])
  passes = 1.0 if job.sam is None else job.sam.passes
  memory = estimate_memory(job, network)
  return {
    "parameters": sum(cost.count_parameters(network)),
    "macs": macs,
    "images": images,
    "steps": job.total_steps,
    "epochs": images / job.num_examples,
    "flops": job.compute.flops(macs, passes * images),
    "tpu_v4_core_hours": job.compute.core_hours(
      macs, passes * images, job.variant
    ),
    "utilisation": job.compute.utilisation_of(job.variant),
    "memory_bytes": memory.fixed,
    "memory_bytes_an_image": memory.an_image,
  }


def table(lines: list[tuple[str, str]]) -> str:
  """Returns the lines with their names in one column."""
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
