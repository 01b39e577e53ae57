import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.models.sparse_kernels import sparse_convolutions
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.schedules import warmup_cosine
from nfnets_tf.scaling.compute import TpuV4
from nfnets_tf.train import dry_run


def text(lines):
  return "\n".join(f"{name}: {value}" for name, value in lines)


def test_network():
  network = cost.abstractly(lambda: NFNet("F0", 30_000))
  lines = text(dry_run.describe_network(network, 224))
  assert "NFNet F0, 30,000 classes" in lines
  # 71,489,284 with 1,000 classes; 3,073 parameters a class.
  total = 71_489_284 + 29_000 * 3_073
  assert f"{total:,} = 68,416,284 body + 92,190,000 head" in lines
  # 9,487,486,976 MACs with 1,000 classes; 3,072 a class.
  assert "per image of 224 px (9.6 G)" in lines


def test_network_with_recomputation():
  def build(**options):
    return cost.abstractly(lambda: NFNet("femto", 3, **options))

  plain = dry_run.describe_network(build(), 32)
  network = build(recompute=True)
  *same, (_, text) = dry_run.describe_network(network, 32)
  assert same == plain
  again = cost.count_recomputed_macs(network, 32)
  share = again / cost.count_macs(network, 32) / 3
  assert text.startswith(f"{again:,} of them again")
  assert f"{share:.0%} more arithmetic" in text


def test_gradient():
  assert dry_run.describe_gradient(None) == []
  how = SAM(0.05, scope="replica", ascent_fraction=0.2, every=2)
  assert text(dry_run.describe_gradient(how)) == (
    "gradient: SAM, rho 0.05 for each replica, ascent on 20% of it, one step"
    " in 2"
  )


def test_learning_rate():
  schedule = warmup_cosine(peak=1.6, warmup_steps=100, total_steps=1000)
  (_, points), (_, sketch) = dry_run.describe_learning_rate(schedule, 1000)
  assert points.startswith("0 at 0%, 0.16 at 1%, 1.6 at 10%")
  assert points.endswith("0 at 100%")
  assert sketch[0] in "▁▂" and "█" in sketch and sketch[-1] == "▁"


def test_reading():
  split = pipeline.Split(
    directory="gs://bucket/jft",
    split="train",
    num_classes=3,
    transforms=[preprocessing.Flip()],
  )
  lines = text(dry_run.describe_reading(split, 4_000_000_000, 4_096))
  assert "gs://bucket/jft/train-*" in lines
  assert "32 hosts, each 128 images per step and 125,000,000 per epoch" in lines


def test_compute():
  costs = {"tpu_v4_core_hours": 1234.5, "utilization": 0.33, "epochs": 8.0}
  compute = TpuV4(utilization=0.33)
  lines = text(dry_run.describe_compute(compute, "F7+", costs))
  assert "1,234 TPU-v4 core-hours by its FLOPs at 33% of the peak" in lines
  assert "106,600 TPU-v4 core-hours in the paper's figure 2" in lines
  assert "figure 2" not in text(dry_run.describe_compute(compute, "F2", costs))


@pytest.mark.parametrize(
  "sam, passes", [(SAM(), 2), (SAM(ascent_fraction=0.2, every=2), 1.1)]
)
def test_sam_costs_its_passes(sam, passes):
  job = Configuration(
    ["gin/quickstart.gin", "gin/overlays/smoke.gin"], ["DATA_DIR = '/nowhere'"]
  ).build_job()
  plain = job.figures()
  job.optimization = dataclasses.replace(job.optimization, sam=sam)
  sharp = job.figures()
  for name in ("flops", "tpu_v4_core_hours"):
    assert sharp[name] == pytest.approx(passes * plain[name])
  assert sharp["images"] == plain["images"]


def test_recomputation_costs_hours_and_is_no_work_of_the_network():
  job = Configuration(
    ["gin/quickstart.gin", "gin/overlays/smoke.gin"], ["DATA_DIR = '/nowhere'"]
  ).build_job()
  plain = job.figures()
  build = job.model.network
  network = cost.abstractly(lambda: build(recompute=True))
  ours = job.figures(network)
  size = job.data.train_split.image_shape()[0]
  again = cost.count_recomputed_macs(network, size)
  ratio = (3 * plain["macs"] + again) / (3 * plain["macs"])
  assert ours["tpu_v4_core_hours"] == pytest.approx(
    ratio * plain["tpu_v4_core_hours"]
  )
  for name in ("macs", "flops", "parameters"):
    assert ours[name] == plain[name]
  assert ours["memory_bytes_per_image"] < plain["memory_bytes_per_image"]


@pytest.mark.parametrize(
  "sparsity, distribution",
  [(0.75, "uniform"), (0.75, "erdos_renyi"), ("2:4", "uniform")],
)
def test_pruning_saves_flops_by_its_mean_and_no_hours(sparsity, distribution):
  job = Configuration(
    [
      "gin/quickstart.gin",
      "gin/overlays/smoke.gin",
      "gin/overlays/sparse.gin",
    ],
    [
      "DATA_DIR = '/nowhere'",
      "VARIANT = 'femto'",
      f"SPARSITY = {sparsity!r}",
      f"pruning.Pruning.distribution = {distribution!r}",
    ],
  ).build_job()
  pruning = job.optimization.pruning
  sparse = job.figures()
  job.optimization = dataclasses.replace(job.optimization, pruning=None)
  dense = job.figures()
  for name in ("macs", "parameters", "tpu_v4_core_hours", "memory_bytes"):
    assert sparse[name] == dense[name]
  # By the operations of the whole graph.
  layers = sparse_convolutions(cost.abstractly(job.model.network))
  final = {
    tuple(layer.kernel.shape): sparsity
    for layer, sparsity in zip(layers, pruning.sparsities_of(layers))
  }
  network = cost.abstractly(functools.partial(job.model.network, sparse=None))
  size = job.data.train_split.image_shape()[0]
  graph = (
    tf.function(network)
    .get_concrete_function(tf.TensorSpec([1, size, size, 3]))
    .graph
  )
  steps = np.arange(job.schedule.total_steps)
  stem, macs = {f"stem_conv{i}" for i in range(4)}, 0.0
  for op in graph.get_operations():
    if op.type not in ("Conv2D", "MatMul"):
      continue
    kernel = op.inputs[1].shape
    in_stem = stem & set(op.name.split("/"))
    s = 0.0 if in_stem else final.get(tuple(kernel), 0.0)
    density = 1.0 - np.mean(pruning.sparsity_after(steps, s))
    macs += density * op.outputs[0].shape.num_elements() * np.prod(kernel[:-1])
  assert sparse["flops"] / dense["flops"] == pytest.approx(macs / dense["macs"])
  assert sparse["mean_density"] == pytest.approx(macs / dense["macs"])
  shapes = [tuple(layer.kernel.shape) for layer in layers]
  pruned = sum(final[shape] * np.prod(shape) for shape in shapes)
  assert sparse["live_weights"] == pytest.approx(
    sum(map(np.prod, shapes)) - pruned, abs=len(layers)
  )
  assert sparse["nonzero_parameters"] == pytest.approx(
    dense["parameters"] - pruned, abs=len(layers)
  )


def test_what_is_frozen_is_not_pruned_in_the_plan_either():
  frozen = ["stage1", "stage2", "stage3"]
  job = Configuration(
    ["gin/quickstart.gin", "gin/overlays/sparse.gin"],
    [
      "DATA_DIR = '/nowhere'",
      "VARIANT = 'femto'",
      f"classifier.Classifier.frozen = {frozen}",
    ],
  ).build_job()
  figures = job.figures()
  network = cost.abstractly(job.model.network)
  last = network.get_layer("nf_block_3")
  layers = [last.conv_shortcut, last.conv0, last.conv1, last.conv1b, last.conv2]
  layers.append(network.get_layer("final_conv"))
  size = sum(layer.kernel.shape.num_elements() for layer in layers)
  assert figures["live_weights"] == pytest.approx(size / 4, abs=9)
  assert figures["nonzero_parameters"] == pytest.approx(
    figures["parameters"] - 0.75 * size, abs=9
  )
  assert 0.625 * 0.75 > 1 - figures["mean_density"] > 0


def test_describes_the_program_of_a_run_on_a_tpu():
  job = Configuration(
    ["gin/f0_jft.gin"],
    ["NUM_CLASSES = 7", "classifier.Classifier.micro_batches = 2"],
  ).build_job()
  text = job.plan()
  assert "tools.tpu_check compile --gin_file=... --slice=v4-256" in text
  # What the configuration binds, and the defaults of the class.
  options = job.classifier_options()
  assert (options["micro_batches"], options["ema_decay"]) == (2, None)
  assert options["layer_decay"] == 1.0


def test_describes_a_whole_run():
  job = Configuration(
    ["gin/quickstart.gin", "gin/overlays/smoke.gin", "gin/overlays/sam.gin"],
    ["DATA_DIR = '/nowhere'", "EPOCHS = 2", "MULTIPLICITY = 2"],
  ).build_job()
  lines = dry_run.describe_run(
    job.model,
    job.optimization,
    job.data,
    job.schedule,
    job.devices,
    classifier_options=job.classifier_options(),
  )
  assert [name for name, _ in lines if name] == [
    "model",
    "parameters",
    "MACs",
    "start",
    "images",
    "steps",
    "learning rate",
    "strategy",
    "reading",
    "memory",
    "gradient",
    "compute",
  ]
  of = dict(lines)
  assert "per device plus" in of["memory"]
  assert of["strategy"] == "one_device, float32, 2 steps per call"
  steps, per_epoch = job.schedule.total_steps, job.data.num_examples
  assert of["steps"] == f"{steps:,} at batch 32"
  epochs = 32 * steps / 2 / per_epoch
  assert of["images"] == (
    f"{32 * steps:,} = {epochs:.4g} epochs of {per_epoch:,}, 2 times each"
  )
  assert of["start"] == job.model.init_weights.describe()


def test_table_aligns_values():
  assert dry_run.format_table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
