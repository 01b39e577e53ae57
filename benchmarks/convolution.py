"""Grouped 3x3 convolution, forward and backward, on this machine's devices.

  python -m benchmarks.convolution

Compares `ops.convolution.conv2d` with Keras' own layer (compiled with XLA on a
CPU) and with one convolution a group, at the shapes of NFNet-F0's third stage.
"""

import json
import statistics

import tensorflow as tf

from benchmarks.timing import median_ratio, seconds_side_by_side
from nfnets_tf.keras_api import keras
from nfnets_tf.ops import convolution

BATCH, SIZE, CHANNELS, GROUPS = 8, 12, 768, 6


def main() -> None:
  """Prints seconds and, last, the ratios as JSON."""
  images = tf.random.normal([BATCH, SIZE, SIZE, CHANNELS])
  layer = keras.layers.Conv2D(
    CHANNELS, 3, padding="same", groups=GROUPS, use_bias=False
  )
  layer(images)
  kernel = layer.kernel

  def gradients(convolve):
    @tf.function
    def run():
      with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(convolve() ** 2)
      return tape.gradient(loss, [images, kernel])

    return lambda: [gradient.numpy() for gradient in run()]

  options = {"strides": 1, "groups": GROUPS}
  seconds = seconds_side_by_side(
    {
      "ours": gradients(lambda: convolution.conv2d(images, kernel, **options)),
      "keras": gradients(lambda: layer(images)),
      "by_group": gradients(
        lambda: convolution.conv2d_by_group(images, kernel, **options)
      ),
    },
    rounds=10,
  )
  flops = 6 * BATCH * SIZE**2 * CHANNELS * 9 * (CHANNELS // GROUPS)
  for name, times in seconds.items():
    median = statistics.median(times)
    rate = flops / median / 1e9
    print(f"{name:>9} {median * 1e3:8.1f} ms {rate:7.0f} GFLOP/s")
  ratios = {
    f"{name}_over_ours": median_ratio(seconds[name], seconds["ours"])
    for name in ("keras", "by_group")
  }
  print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


if __name__ == "__main__":
  main()
