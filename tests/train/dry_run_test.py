import types

import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.data import pipeline, preprocessing
from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.schedules import warmup_cosine
from nfnets_tf.scaling.compute import TpuV4
from nfnets_tf.train import dry_run
from nfnets_tf.train.dry_run import Memory, describe_memory, estimate_memory


def text(lines):
  return "\n".join(f"{name}: {value}" for name, value in lines)


def test_network():
  lines, macs = dry_run.describe_network(lambda: NFNet("F0", 30_000), 224)
  assert "NFNet F0, 30,000 classes" in text(lines)
  # 71,489,284 with 1,000 classes; 3,073 parameters a class.
  total = 71_489_284 + 29_000 * 3_073
  assert f"{total:,} = 68,416,284 body + 92,190,000 head" in text(lines)
  assert macs == pytest.approx(9_487_486_976 + 29_000 * 3_072, rel=1e-3)


def test_length():
  lines = text(dry_run.describe_length(4_000_000_000, 4_096, 244_141, 1))
  assert "1,000,001,536 = 0.25 epochs of 4,000,000,000" in lines
  assert "244,141 at batch 4,096" in lines


def test_length_with_repeated_augmentation():
  lines = text(dry_run.describe_length(1_000, 100, 500, 4))
  assert "50,000 = 12.5 epochs of 1,000, 4 times each" in lines


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
  images = 32_000_000_000
  lines = text(
    dry_run.describe_compute(
      TpuV4(utilization=0.33), "F7+", 100_857_131_008, images, 8.0, None
    )
  )
  assert "106,600 TPU-v4 core-hours in the paper's figure 2" in lines
  lines = text(
    dry_run.describe_compute(TpuV4(utilization=0.5), "F2", 1, 1, 3.0, None)
  )
  assert "figure 2" not in lines


@pytest.mark.parametrize(
  "sam, passes", [(SAM(), 2), (SAM(ascent_fraction=0.2, every=2), 1.1)]
)
def test_sam_costs_its_passes(sam, passes):
  def hours(sam):
    lines = dry_run.describe_compute(
      TpuV4(utilization=0.33), "F2", 10**11, 10**9, 3.0, sam
    )
    return float(lines[0][1].split()[0].replace(",", ""))

  assert hours(sam) / hours(None) == pytest.approx(passes, rel=1e-3)


@pytest.mark.parametrize("sam, lines", [(None, 1), (SAM(0.05), 2)])
def test_start_of_training(sam, lines):
  split = types.SimpleNamespace(directory="gs://bucket/jft")
  model = types.SimpleNamespace(variant="F0")
  optimization = types.SimpleNamespace(sam=sam)
  data = types.SimpleNamespace(batch_size=4_096, train_split=split)
  train = SplitInfo(("a", "b", "c"), (1_000, 1_000, 500), 3, ())
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  first, *more_lines = dry_run.describe_start(
    model, optimization, data, 12_345, strategy, train
  )
  assert first == (
    "Training NFNet F0 on MirroredStrategy, 2 replicas: 12,345 steps of 4,096"
    " images, 2,500 images per epoch from 3 shards in gs://bucket/jft."
  )
  assert len(more_lines) == lines - 1
  for line in more_lines:
    assert line.startswith("Gradients by SAM, rho 0.05") and line[-1] == "."


def test_run_is_described_from_network_to_compute():
  job = Configuration(
    ["gin/quickstart.gin", "gin/overlays/smoke.gin", "gin/overlays/sam.gin"],
    ["DATA_DIR = '/nowhere'", "EPOCHS = 2", "MULTIPLICITY = 2"],
  ).build_job()
  lines = dry_run.describe_run(
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
  assert "per device plus" in of["memory"]
  assert of["strategy"] == "one_device, float32, 2 steps per call"
  assert of["steps"] == f"{job.schedule.total_steps:,} at batch 32"
  assert of["images"].endswith("2 times each")
  assert of["start"] == job.model.init_weights.describe()


def test_table_aligns_the_values():
  assert dry_run.format_table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"


def estimate(network=None, size=32, sam=None, policy="float32"):
  network = cost.abstractly(network or (lambda: NFNet("femto", 4)))
  return estimate_memory(network, image_size=size, sam=sam, policy=policy)


def one_convolution(size):
  return lambda: keras.Sequential(
    [
      keras.Input([size, size, 3]),
      keras.layers.Conv2D(8, 3, strides=2, padding="same"),
      keras.layers.GlobalAveragePooling2D(),
      keras.layers.Dense(5, name="classifier"),
    ]
  )


@pytest.mark.parametrize(
  "options, parameters, activations",
  [
    ({}, 4 * 4, 4),  # weights, gradients, momentum, averages
    ({"sam": SAM(0.05)}, 6 * 4, 4),
    ({"policy": "mixed_bfloat16"}, 4 * 4, 2),
    ({"policy": "mixed_float16"}, 4 * 4, 2),
  ],
)
def test_memory_against_a_count_by_hand(options, parameters, activations):
  memory = estimate(one_convolution(16), size=16, **options)
  weights = 3 * 3 * 3 * 8 + 8 + 8 * 5 + 5
  kept = 16 * 16 * 3 + 8 * 8 * 8
  assert memory == Memory(
    fixed=weights * parameters, per_image=round(kept * activations * 1.15)
  )


def test_memory_of_an_nfnet():
  memory = estimate()
  assert memory.fixed == 16 * NFNet("femto", 4).count_params()
  larger = estimate(size=64)
  assert larger.fixed == memory.fixed
  # Squeeze and excitation have no size; all else is as large as the image.
  assert larger.per_image / memory.per_image == pytest.approx(4, rel=0.02)


def test_half_precision_halves_activations_and_sam_adds_two_copies():
  plain, half = estimate(), estimate(policy="bfloat16")
  assert half == Memory(plain.fixed, plain.per_image // 2)
  with_sam = estimate(sam=SAM(0.05))
  assert with_sam == Memory(plain.fixed * 6 // 4, plain.per_image)


def test_memory_of_f0_on_a_tpu_is_as_measured():
  """Compiled for a TPU v4 a step takes 61 MB more for each image."""
  memory = estimate(
    lambda: NFNet("F0", 1000), size=224, policy="mixed_bfloat16"
  )
  assert memory.per_image == pytest.approx(61e6, rel=0.02)
  assert memory.fixed == 16 * 71_489_284


def test_memory_in_words():
  memory = estimate(one_convolution(16), size=16)
  assert memory == (4_304, 5_888)
  text = describe_memory(memory)
  assert text == (
    "about 4.3 kB per device plus 5.9 kB per image at a time, compiled (on a"
    " CPU up to 3 times as much per image)"
  )
  # 4,304 + 8 * 5,888
  assert describe_memory(memory, 8) == (
    f"{text}, 51.4 kB for 8 images per device"
  )
  large = describe_memory(estimate(lambda: NFNet("F0", 1000), size=224))
  assert large.startswith("about 1.1 GB per device plus 121.")
  assert " MB per image" in large
