"""Describes a run and estimates its cost, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet, check_image_size
from nfnets_tf.models.sparse_kernels import sparse_convolutions

if TYPE_CHECKING:
  from nfnets_tf.data.pipeline import Split
  from nfnets_tf.optim.pruning import Pruning
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


def format_table(lines: Lines) -> str:
  """Returns lines with their titles in a column of equal width."""
  width = max(len(title) for title, _ in lines)
  return "\n".join(f"{title:<{width}}  {text}" for title, text in lines)


def estimate_pruning(
  network: keras.Model, image_size: int, pruning: Pruning
) -> dict[str, float]:
  """Estimates what pruning leaves of a network; creates no weights.

  Args:
    network: of a classifier, which freezes; may be of `cost.abstractly`.
    image_size: height and width of training images, in pixels.
    pruning: of the run.

  Returns:
    sparsity of all pruned kernels at the end; live_weights, of their entries
    those that are left then; nonzero_parameters of the whole network; and
    mean_density: multiply-accumulates over the dense network's, the mean over
    training, in (0, 1], without which they are not known by layer.
  """
  layers = [x for x in sparse_convolutions(network) if x.trainable]
  shapes = [tuple(layer.kernel.shape) for layer in layers]
  final = pruning.sparsities_of(layers)
  sizes = [math.prod(shape) for shape in shapes]
  pruned = sum(round(s * size) for s, size in zip(final, sizes))
  means = {s: pruning.mean_sparsity(s) for s in set(final)}
  by_shape = dict(zip(shapes, map(means.get, final)))
  estimates = {
    "sparsity": pruned / sum(sizes),
    "live_weights": sum(sizes) - pruned,
    "nonzero_parameters": network.count_params() - pruned,
  }
  if sparse := cost.count_sparse_macs(network, image_size):
    saved = sum(by_shape[shape] * macs for shape, macs in sparse.items())
    macs = cost.count_macs(network, image_size)
    estimates["mean_density"] = 1.0 - saved / macs
  return estimates


def _estimate_pruning_of(
  model: ModelConfig, pruning: Pruning | None, image_size: int
) -> dict[str, float]:
  """Returns the estimates of a run, {} without pruning."""
  if pruning is None:
    return {}
  classifier = cost.abstractly(
    lambda: model.classifier(network=model.network(), sam=None, pruning=pruning)
  )
  return estimate_pruning(classifier.network, image_size, pruning)


def estimate_costs(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  schedule: Schedule,
  devices: DeviceConfig,
  *,
  averages: bool,
  network: keras.Model | None = None,
) -> dict[str, float]:
  """Estimates the cost of a run; creates no weights, reads no data.

  `averages` says whether the classifier averages the weights; `network` saves
  building the network, where that has been done.

  Returns:
    parameters; macs of an image's forward pass; images, steps and epochs;
    flops of the run, as a utilization counts them, without recomputation;
    tpu_v4_core_hours, with it, at utilization, in (0, 1]; and memory_bytes of a
    device, plus memory_bytes_per_image computed at a time. With pruning flops
    are those of nonzero weights, while the core-hours stay dense, and the
    entries of `estimate_pruning` are there, too.
  """
  network = network or cost.abstractly(model.network)
  images = schedule.total_steps * data.batch_size
  size = data.train_split.image_shape()[0]
  macs = cost.count_macs(network, size)
  # Training takes three forward passes' worth, and recomputation its own.
  executed = macs + cost.count_recomputed_macs(network, size) / 3
  sam, compute = optimization.sam, devices.compute
  sparse = _estimate_pruning_of(model, optimization.pruning, size)
  density = sparse.get("mean_density", 1.0)
  computed = images if sam is None else sam.passes * images
  memory = cost.estimate_memory(
    network, image_size=size, sam=sam, policy=devices.policy, averages=averages
  )
  return {
    "parameters": sum(cost.count_parameters(network)),
    "macs": macs,
    "images": images,
    "steps": schedule.total_steps,
    "epochs": images / data.num_examples,
    "flops": compute.flops(density * macs, computed),
    "tpu_v4_core_hours": compute.core_hours(executed, computed, model.variant),
    "utilization": compute.utilization_of(model.variant),
    "memory_bytes": memory.fixed,
    "memory_bytes_per_image": memory.per_image,
    **sparse,
  }


def describe_run(
  model: ModelConfig,
  optimization: OptimizationConfig,
  data: DataConfig,
  schedule: Schedule,
  devices: DeviceConfig,
  *,
  classifier_options: Mapping[str, object],
) -> Lines:
  """Returns all lines about a run; creates no weights, reads no data.

  The classifier is not built: `classifier_options` are its arguments.

  Raises:
    UserError: if the images are too small for the network.
  """
  network = cost.abstractly(model.network)
  for part in (data.train_split, data.heldout_split):
    check_image_size(network, part.image_shape()[0])
  costs = estimate_costs(
    model,
    optimization,
    data,
    schedule,
    devices,
    averages=classifier_options["ema_decay"] is not None,
    network=network,
  )
  split = data.train_split
  memory = cost.Memory(costs["memory_bytes"], costs["memory_bytes_per_image"])
  strategy = f"{devices.strategy.__name__}, {devices.policy}"
  return [
    *describe_network(network, split.image_shape()[0]),
    ("start", model.init_weights.describe()),
    ("images", _describe_images(data, costs)),
    ("steps", f"{schedule.total_steps:,} at batch {data.batch_size:,}"),
    *describe_learning_rate(optimization.learning_rate, schedule.total_steps),
    ("strategy", f"{strategy}, {schedule.steps_per_execution} steps per call"),
    *describe_reading(split, data.num_examples, data.batch_size),
    ("memory", memory.describe()),
    *describe_gradient(optimization.sam),
    *describe_pruning(optimization.pruning, costs),
    *describe_compute(devices.compute, model.variant, costs),
    *describe_program(
      network, optimization, data, devices, costs, classifier_options
    ),
  ]


def _describe_images(data: DataConfig, costs: dict) -> str:
  multiplicity = data.train_split.augmentation.multiplicity
  copies = f", {multiplicity} times each" if multiplicity > 1 else ""
  epochs = costs["epochs"] / multiplicity
  count = f"{costs['images']:,} = {epochs:.4g} epochs of"
  return f"{count} {data.num_examples:,}{copies}"


def describe_network(network: keras.Model, image_size: int) -> Lines:
  """Returns lines about an NFNet; `network` may be of `cost.abstractly`."""
  body, head = cost.count_parameters(network)
  macs = cost.count_macs(network, image_size)
  config = network.get_config()
  lines = [
    ("model", f"NFNet {config['variant']}, {config['num_classes']:,} classes"),
    (
      "parameters",
      f"{body + head:,} = {body:,} body + {head:,} head"
      f" ({(body + head) / 1e6:,.1f} M)",
    ),
    ("MACs", f"{macs:,} per image of {image_size} px ({macs / 1e9:.1f} G)"),
  ]
  if again := cost.count_recomputed_macs(network, image_size):
    # Training takes three forward passes' worth.
    text = (
      f"{again:,} of them again in the backward pass, {again / macs / 3:.0%}"
    )
    lines.append(("", f"{text} more arithmetic, part of the core-hours only"))
  return lines


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


def describe_pruning(pruning: Pruning | None, costs: dict) -> Lines:
  """Returns lines about pruning, none without it.

  Args:
    pruning: of the run, or None.
    costs: of `estimate_costs`.
  """
  if pruning is None:
    return []
  begin, end = pruning.window
  pattern = f" ({pruning.sparsity})" if pruning.pattern else ""
  flops = "FLOPs are counted as dense, since the network is no NFNet"
  if "mean_density" in costs:
    flops = f"{costs['mean_density']:.1%} of the dense FLOPs over training"
  return [
    (
      "pruning",
      f"to a sparsity of {costs['sparsity']:.4g}{pattern} in all convolutions"
      f" but the stem's, every {pruning.every:,} steps from {begin:,} to"
      f" {end:,}",
    ),
    ("", f"leaves {costs['nonzero_parameters']:,} parameters"),
    ("", f"{flops}; devices compute the zeros: memory and hours are dense"),
  ]


def describe_program(
  network: keras.Model,
  optimization: OptimizationConfig,
  data: DataConfig,
  devices: DeviceConfig,
  costs: dict,
  classifier_options: Mapping[str, object],
) -> Lines:
  """Returns lines about the step compiled for TPU-v4, of runs on one only."""
  if devices.strategy.__name__ != "tpu" or not isinstance(network, NFNet):
    return []
  texts = devices.compute.describe_program(
    network,
    batch_size=data.batch_size,
    images=costs["images"],
    image_size=data.train_split.image_shape()[0],
    policy=devices.policy,
    optimizer=optimization.optimizer.__name__,
    sam=optimization.sam,
    micro_batches=classifier_options["micro_batches"],
    ema_decay=classifier_options["ema_decay"],
  )
  return list(zip(["on TPU-v4"] + [""] * len(texts), texts))


def describe_compute(compute, variant: str, costs: dict) -> Lines:
  """Returns lines about TPU-v4 core-hours, by FLOPs and in the paper.

  Args:
    compute: a `scaling.compute.TpuV4`.
    variant: of the network.
    costs: of `estimate_costs`.
  """
  lines = [
    (
      "compute",
      f"{costs['tpu_v4_core_hours']:,.0f} TPU-v4 core-hours by its FLOPs at"
      f" {costs['utilization']:.0%} of the peak",
    )
  ]
  epochs = round(costs["epochs"], 4)
  published = compute.published_core_hours(variant, epochs)
  if published is not None:
    text = f"{published:,} TPU-v4 core-hours in the paper's figure 2"
    lines.append(("", f"{text} ({variant}, {epochs:g} epochs of JFT-4B)"))
  return lines
