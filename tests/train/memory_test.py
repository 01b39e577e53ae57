import pytest
from tensorflow import keras

from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.memory import Memory, describe_memory, estimate_memory


def estimate(network=None, size=32, sam=None, policy="float32"):
  network = cost.abstractly(network or (lambda: NFNet("femto", 4)))
  return estimate_memory(network, image_size=size, sam=sam, policy=policy)


def by_hand(size):
  """One convolution, whose numbers are counted here."""
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
def test_an_estimate_against_a_count_by_hand(options, parameters, activations):
  found = estimate(by_hand(16), size=16, **options)
  weights = 3 * 3 * 3 * 8 + 8 + 8 * 5 + 5
  kept = 16 * 16 * 3 + 8 * 8 * 8
  assert found == Memory(
    fixed=weights * parameters, an_image=round(kept * activations * 1.15)
  )


def test_an_estimate_of_an_nfnet():
  found = estimate()
  assert found.fixed == 16 * NFNet("femto", 4).count_params()
  larger = estimate(size=64)
  assert larger.fixed == found.fixed
  # Squeeze and excitation have no size; all else is as large as the image.
  assert larger.an_image / found.an_image == pytest.approx(4, rel=0.02)


def test_half_precision_halves_what_an_image_takes_and_sam_adds_two_copies():
  plain, half = estimate(), estimate(policy="bfloat16")
  assert half == Memory(plain.fixed, plain.an_image // 2)
  with_sam = estimate(sam=SAM(0.05))
  assert with_sam == Memory(plain.fixed * 6 // 4, plain.an_image)


def test_f0_on_a_tpu_is_as_it_was_measured():
  """Compiled for a TPU v4 a step takes 61 MB more for each image."""
  found = estimate(lambda: NFNet("F0", 1000), size=224, policy="mixed_bfloat16")
  assert found.an_image == pytest.approx(61e6, rel=0.02)
  assert found.fixed == 16 * 71_489_284


def test_an_estimate_in_words():
  found = estimate(by_hand(16), size=16)
  assert found == (4_304, 5_888)
  text = describe_memory(found)
  assert text == (
    "about 4.3 kB a device and 5.9 kB an image at a time, compiled (on a CPU up"
    " to 3 times as much an image)"
  )
  # 4,304 + 8 * 5,888
  assert describe_memory(found, 8) == (
    f"{text}, 51.4 kB for the 8 images of each"
  )
  large = describe_memory(estimate(lambda: NFNet("F0", 1000), size=224))
  assert large.startswith("about 1.1 GB a device and 121.")
  assert " MB an image" in large
