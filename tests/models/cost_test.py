import csv
import pathlib

import pytest
import tensorflow as tf
from tensorflow import keras

from nfnets_tf.models import cost, nfnet

TABLE = pathlib.Path(__file__).parents[1] / "testdata" / "variants.csv"
with TABLE.open() as file:
  VARIANTS = list(csv.DictReader(file))


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row["variant"])
def test_parameters_to_the_unit_and_macs_to_a_thousandth(row):
  network = cost.abstractly(lambda: nfnet.NFNet(row["variant"], 1000))
  body, head = cost.count_parameters(network)
  assert body + head == int(row["parameters_1000_classes"])
  macs = cost.count_macs(network, 224)
  assert macs == pytest.approx(int(row["macs_224"]), rel=1e-3)


@pytest.mark.parametrize("row", VARIANTS[:2], ids=lambda row: row["variant"])
def test_macs_at_the_sizes_of_training_and_evaluation(row):
  network = cost.abstractly(lambda: nfnet.NFNet(row["variant"], 1000))
  for when in ("train", "eval"):
    macs = cost.count_macs(network, int(row[f"{when}_size"]))
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
def test_what_convolutions_take_and_give_is_kept(layers, expected):
  network = cost.abstractly(convolutions(*layers))
  assert cost.count_activations(network, 8) == expected


def test_activations_of_f0():
  network = cost.abstractly(lambda: nfnet.NFNet("F0", 1000))
  kept = cost.count_activations(network, 224)
  assert kept == pytest.approx(26.4e6, rel=2e-3)
  assert cost.count_activations(network, 448) > 3.9 * kept


def test_published_rule_gives_the_papers_f4_plus():
  network = cost.abstractly(
    lambda: nfnet.NFNet("F4+", 1000, bottleneck_rule="published")
  )
  # The NFNet paper, table 5: 527 M parameters, 367 B multiply-accumulates.
  assert round(sum(cost.count_parameters(network)) / 1e6) == 527
  assert round(cost.count_macs(network, 512) / 1e9) == 367


def test_head_is_counted_apart():
  network = cost.abstractly(lambda: nfnet.NFNet("F0+", 30_000))
  body, head = cost.count_parameters(network)
  assert head == 4096 * 30_000 + 30_000
  assert body == 118_824_516 - 4097 * 1000


def test_abstract_networks_cannot_run_because_they_hold_no_values():
  network = cost.abstractly(lambda: nfnet.NFNet("femto", 3))
  with pytest.raises(TypeError, match="cannot be accessed from here"):
    network(tf.zeros([1, 32, 32, 3]))
