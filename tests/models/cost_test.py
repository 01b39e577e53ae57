import csv
import dataclasses
import functools
import json
import pathlib

import pytest
import tensorflow as tf

from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost, nfnet, variants
from nfnets_tf.optim.sam import SAM

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ROOT / "tools/tpu_check/records"
TABLE = pathlib.Path(__file__).parents[1] / "testdata" / "variants.csv"
with TABLE.open() as file:
  VARIANTS = list(csv.DictReader(file))


ROWS = {row["variant"]: row for row in VARIANTS}


@functools.lru_cache
def abstract(variant, num_classes=1000):
  """Returns a network without values; a trace of it is kept as well."""
  return cost.abstractly(lambda: nfnet.NFNet(variant, num_classes))


@pytest.mark.parametrize(
  "variant",
  [
    name
    if name in ("F0", "F1", "F0+", "F1+")
    else pytest.param(name, marks=pytest.mark.soak)
    for name in ROWS
  ],
)
def test_parameters_to_the_unit_and_macs_to_a_thousandth(variant):
  row = ROWS[variant]
  body, head = cost.count_parameters(abstract(variant))
  assert body + head == int(row["parameters_1000_classes"])
  macs = cost.count_macs(abstract(variant), 224)
  assert macs == pytest.approx(int(row["macs_224"]), rel=1e-3)


@pytest.mark.parametrize("family, deep", [("", "F1"), ("+", "F1+")])
def test_table_is_affine_in_the_depth(family, deep):
  """So that two networks of a family give the others, which take minutes."""
  shallow = f"F0{family}"
  base, other = variants.variant(shallow), variants.variant(deep)
  times = other.depths[0] - 1

  def measure(name):
    return (
      sum(cost.count_parameters(abstract(name))),
      cost.count_macs(abstract(name), 224),
    )

  first, last = measure(shallow), measure(deep)
  for k in range(8):
    size = variants.variant(f"F{k}{family}")
    assert size.depths == tuple((k + 1) * depth for depth in base.depths)
    same = {"depths": base.depths, "drop_rate": base.drop_rate}
    assert dataclasses.replace(size, **same) == base
    parameters, macs = (a + k * (b - a) / times for a, b in zip(first, last))
    row = ROWS[f"F{k}{family}"]
    assert parameters == int(row["parameters_1000_classes"])
    assert macs == pytest.approx(int(row["macs_224"]), rel=1e-3)


@pytest.mark.parametrize(
  "variant", ["F0", pytest.param("F1", marks=pytest.mark.soak)]
)
def test_macs_at_the_sizes_of_training_and_evaluation(variant):
  row = ROWS[variant]
  for when in ("train", "eval"):
    macs = cost.count_macs(abstract(variant), int(row[f"{when}_size"]))
    expected = int(row[f"macs_{when}_size"])
    assert macs == pytest.approx(expected, rel=1e-3)


def convolutions(*layers):
  return lambda: keras.Sequential([keras.Input([None, None, 3]), *layers])


def conv(filters, **options):
  return keras.layers.Conv2D(filters, 3, padding="same", **options)


@pytest.mark.parametrize(
  "layers, expected",
  [
    ([conv(4)], 8 * 8 * (3 + 4)),
    ([conv(4, strides=2)], 8 * 8 * 3 + 4 * 4 * 4),
    # What activations give is taken by the next one; what they take is its own.
    ([conv(4), keras.layers.ReLU(), conv(5)], 8 * 8 * (3 + 4 + 4 + 5)),
    # Each tensor is kept once.
    ([conv(4, use_bias=False), conv(5)], 8 * 8 * (3 + 4 + 5)),
    # No convolution, nothing that is not made again.
    ([keras.layers.ReLU(), keras.layers.Dense(7)], 0),
  ],
)
def test_inputs_and_outputs_of_convolutions_are_counted(layers, expected):
  network = cost.abstractly(convolutions(*layers))
  assert cost.count_activations(network, 8) == expected


def test_activations_of_f0():
  kept = cost.count_activations(abstract("F0"), 224)
  assert kept == pytest.approx(26.4e6, rel=2e-3)


@pytest.mark.soak
def test_published_rule_gives_the_papers_f4_plus():
  network = cost.abstractly(
    lambda: nfnet.NFNet("F4+", 1000, bottleneck_rule="published")
  )
  # The NFNet paper, table 5: 527 M parameters, 367 B multiply-accumulates.
  assert round(sum(cost.count_parameters(network)) / 1e6) == 527
  assert round(cost.count_macs(network, 512) / 1e9) == 367


def test_published_rule_widens_stage_1_of_the_plus_family():
  released = abstract("F0+").get_layer("nf_block")
  assert (released.bottleneck, released.groups) == (128, 1)
  published = cost.abstractly(
    lambda: nfnet.NFNet("F0+", 1000, bottleneck_rule="published")
  ).get_layer("nf_block")
  assert (published.bottleneck, published.groups) == (192, 1)


def test_drop_rate_defaults_to_the_variants():
  assert abstract("F0").get_layer("dropout").rate == 0.2


def test_head_is_counted_apart():
  body, head = cost.count_parameters(abstract("F0+", 30_000))
  assert head == 4096 * 30_000 + 30_000
  assert body == 118_824_516 - 4097 * 1000


def test_abstract_networks_hold_no_values():
  network = cost.abstractly(lambda: nfnet.NFNet("femto", 3))
  with pytest.raises(TypeError, match="cannot be accessed from here"):
    network(tf.zeros([1, 32, 32, 3]))


def femto(**options):
  return cost.abstractly(lambda: nfnet.NFNet("femto", 3, **options))


def test_recomputed_blocks_keep_their_inputs_and_the_largest_block():
  plain = cost.count_activations(femto(), 32)
  # Stage 1 maps 8x8x8 to 8x8x16, with 8 channels in 2 groups between; stage 2
  # maps that to 4x4x16. Their convolutions take and give:
  first = 64 * (8 + 16 + 6 * 8 + 8 + 16 - 8)
  second = 64 * (16 + 2 * 8) + 16 * (2 * 16 + 4 * 8 + 16)
  one = femto(recompute=["stage1"])
  assert cost.count_activations(one, 32) == plain + 64 * 8
  both = femto(recompute=["stage1", "stage2"])
  kept = plain - first - second + 64 * 8 + 64 * 16
  assert cost.count_activations(both, 32) == kept + max(first, second)


def test_recomputed_macs_are_no_macs_of_the_network():
  network = femto(recompute=["stage1"])
  assert cost.count_macs(network, 32) == cost.count_macs(femto(), 32)
  assert cost.count_recomputed_macs(femto(), 32) == 0
  # Shortcut, 1x1, twice 3x3 in groups of 4 channels, 1x1; squeeze-excite.
  pixel = 8 * 16 + 8 * 8 + 2 * 9 * 4 * 8 + 8 * 16
  expected = 64 * pixel + 2 * 16 * 8
  assert cost.count_recomputed_macs(network, 32) == expected


def estimate(network=None, size=32, sam=None, policy="float32", averages=True):
  network = cost.abstractly(network or (lambda: nfnet.NFNet("femto", 4)))
  return cost.estimate_memory(
    network, image_size=size, sam=sam, policy=policy, averages=averages
  )


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
    ({"averages": False}, 3 * 4, 4),
    ({"sam": SAM(0.05)}, 6 * 4, 4),
    ({"policy": "mixed_bfloat16"}, 4 * 4, 2),
    ({"policy": "mixed_float16"}, 4 * 4, 2),
  ],
)
def test_memory_against_a_count_by_hand(options, parameters, activations):
  memory = estimate(one_convolution(16), size=16, **options)
  weights = 3 * 3 * 3 * 8 + 8 + 8 * 5 + 5
  kept = 16 * 16 * 3 + 8 * 8 * 8
  assert memory == cost.Memory(
    fixed=weights * parameters, per_image=round(kept * activations * 0.8)
  )


def test_memory_of_an_nfnet():
  memory = estimate()
  assert memory.fixed == 16 * nfnet.NFNet("femto", 4).count_params()
  larger = estimate(size=64)
  assert larger.fixed == memory.fixed
  # Squeeze and excitation have no size; all else is as large as the image.
  assert larger.per_image / memory.per_image == pytest.approx(4, rel=0.02)


def test_half_precision_halves_activations_and_sam_adds_two_copies():
  plain, half = estimate(), estimate(policy="bfloat16")
  assert half == cost.Memory(plain.fixed, plain.per_image // 2)
  with_sam = estimate(sam=SAM(0.05))
  assert with_sam == cost.Memory(plain.fixed * 6 // 4, plain.per_image)


@pytest.mark.parametrize(
  "name",
  ["pretrain-f0-512", "pretrain-recompute-f0-64", "finetune-sam-f0plus-8"],
)
def test_memory_is_a_little_more_than_of_the_program_for_a_tpu(name):
  record = json.loads((PROGRAMS / f"{name}.json").read_text())
  run = record["run"]
  recompute = run["network"].get("recompute", ())
  memory = estimate(
    lambda: nfnet.NFNet(
      run["variant"], run["num_classes"], recompute=recompute
    ),
    size=run["image_size"],
    sam=run["sam"],
    policy=run["policy"],
    averages=run["ema_decay"] is not None,
  )
  total = memory.fixed + run["batch_per_replica"] * memory.per_image
  assert 1.0 < total / record["memory"]["peak_bytes"] < 1.4


def test_memory_in_words():
  memory = estimate(one_convolution(16), size=16)
  assert memory == (4_304, 4_096)
  text = memory.describe()
  assert text == (
    "about 4.3 kB per device plus 4.1 kB per image at a time, compiled (on a"
    " CPU up to 1.3 times as much per image)"
  )
  # 4,304 + 8 * 4,096
  assert memory.describe(8) == f"{text}, 37.1 kB for 8 images per device"
  large = estimate(lambda: nfnet.NFNet("F0", 1000), size=224).describe()
  assert large.startswith("about 1.1 GB per device plus 84.")
  assert " MB per image" in large
