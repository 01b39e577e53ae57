import types

import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.schedules import WarmupCosine
from nfnets_tf.scaling.compute import TpuV4
from nfnets_tf.train import plan


def text(lines):
  return "\n".join(f"{name}: {value}" for name, value in lines)


def test_network():
  lines, macs = plan.describe_network(lambda: NFNet("F0", 30_000), 224)
  assert "NFNet F0, 30,000 classes" in text(lines)
  # 71,489,284 with 1,000 classes; 3,073 parameters a class.
  total = 71_489_284 + 29_000 * 3_073
  assert f"{total:,} = 68,416,284 body + 92,190,000 head" in text(lines)
  assert macs == pytest.approx(9_487_486_976 + 29_000 * 3_072, rel=1e-3)


def test_length():
  lines = text(plan.describe_length(4_000_000_000, 4_096, 244_141, 1))
  assert "1,000,001,536 = 0.25 epochs of 4,000,000,000" in lines
  assert "244,141 at batch 4,096" in lines


def test_length_with_repeated_augmentation():
  lines = text(plan.describe_length(1_000, 100, 500, 4))
  assert "50,000 = 12.5 epochs of 1,000, 4 times each" in lines


def test_gradient():
  assert plan.describe_gradient(None) == []
  how = SAM(0.05, scope="replica", ascent_fraction=0.2, every=2)
  assert text(plan.describe_gradient(how)) == (
    "gradient: SAM, rho 0.05 of each replica alone, from 20% of it, one step in"
    " 2"
  )


def test_learning_rate():
  schedule = WarmupCosine(peak=1.6, warmup_steps=100, total_steps=1000)
  (_, points), (_, sketch) = plan.describe_learning_rate(schedule, 1000)
  assert points.startswith("0 at 0%, 0.16 at 1%, 1.6 at 10%")
  assert points.endswith("0 at 100%")
  assert sketch[0] in "▁▂" and "█" in sketch and sketch[-1] == "▁"


def test_reading():
  split = pipeline.Split(
    directory="gs://bucket/jft",
    split="train",
    num_classes=3,
    operations=[preprocess.Flip()],
  )
  lines = text(plan.describe_reading(split, 4_000_000_000, 4_096))
  assert "gs://bucket/jft/train-*" in lines
  assert "32 hosts, 128 images a step and 125,000,000 an epoch" in lines


def test_compute():
  images = 32_000_000_000
  lines = text(
    plan.describe_compute(
      TpuV4(utilization=0.33), "F7+", 100_857_131_008, images, 8.0, None
    )
  )
  assert "106,600 TPU-v4 core-hours in the paper's figure 2" in lines
  lines = text(
    plan.describe_compute(TpuV4(utilization=0.5), "F2", 1, 1, 3.0, None)
  )
  assert "figure 2" not in lines


@pytest.mark.parametrize(
  "sam, passes", [(SAM(), 2), (SAM(ascent_fraction=0.2, every=2), 1.1)]
)
def test_sam_costs_its_passes(sam, passes):
  def hours(sam):
    lines = plan.describe_compute(
      TpuV4(utilization=0.33), "F2", 10**11, 10**9, 3.0, sam
    )
    return float(lines[0][1].split()[0].replace(",", ""))

  assert hours(sam) / hours(None) == pytest.approx(passes, rel=1e-3)


@pytest.mark.parametrize("sam, lines", [(None, 1), (SAM(0.05), 2)])
def test_what_is_said_when_training_begins(sam, lines):
  split = types.SimpleNamespace(directory="gs://bucket/jft")
  model = types.SimpleNamespace(variant="F0")
  optimization = types.SimpleNamespace(sam=sam)
  data = types.SimpleNamespace(batch_size=4_096, train_split=split)
  train = SplitInfo(("a", "b", "c"), (1_000, 1_000, 500), 3, ())
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  first, *others = plan.announcement(
    model, optimization, data, 12_345, strategy, train
  )
  assert first == (
    "Training NFNet F0 on MirroredStrategy, 2 replicas: 12,345 steps of 4,096"
    " images, 2,500 images an epoch from 3 shards in gs://bucket/jft."
  )
  assert len(others) == lines - 1
  for line in others:
    assert line.startswith("Gradients by SAM, rho 0.05") and line[-1] == "."


def test_a_run_is_described_from_its_network_to_its_compute():
  job = Configuration(
    ["gin/quickstart.gin", "gin/overlays/smoke.gin", "gin/overlays/sam.gin"],
    ["DATA_DIR = '/nowhere'", "EPOCHS = 2", "MULTIPLICITY = 2"],
  ).build_job()
  lines = plan.describe_run(
    job.model, job.optimization, job.data, job.schedule, job.devices
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
  assert "a device and" in of["memory"]
  assert of["strategy"] == "one_device, float32, 2 steps a call"
  assert of["steps"] == f"{job.schedule.total_steps:,} at batch 32"
  assert of["images"].endswith("2 times each")
  assert of["start"] == job.model.init_weights.describe()


def test_table_aligns_the_values():
  assert plan.table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
