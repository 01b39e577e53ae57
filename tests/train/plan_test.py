import pytest

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.models.nfnet import NFNet
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
  lines = text(plan.describe_length(4_000_000_000, 4_096, 244_141))
  assert "1,000,001,536 = 0.25 epochs of 4,000,000,000" in lines
  assert "244,141 at batch 4,096" in lines


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
      TpuV4(utilisation=0.33), "F7+", 100_857_131_008, images, 8.0
    )
  )
  assert "106,600 TPU-v4 core-hours in the paper's figure 2" in lines
  lines = text(plan.describe_compute(TpuV4(utilisation=0.5), "F2", 1, 1, 3.0))
  assert "figure 2" not in lines


def test_table_aligns_the_values():
  assert plan.table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
