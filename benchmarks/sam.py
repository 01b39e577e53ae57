"""The cost of SAM: complete training steps, side by side.

  python -m benchmarks.sam

Times three steps in turn: plain, with SAM, and with SAM whose first pass takes
a fifth of the batch (Brock et al. 2021, appendix A.4).
"""

import json

from benchmarks import entry, step_variants
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.classifier import Classifier


def main() -> None:
  """Prints seconds per step and, last, the ratios as JSON."""

  def build(sam):
    return Classifier(NFNet(step_variants.VARIANT.value, 1000), sam=sam)

  ratios = step_variants.compare(
    {
      "plain": lambda: build(None),
      "sam": lambda: build(SAM()),
      "sam_fifth": lambda: build(SAM(ascent_fraction=0.2)),
    }
  )
  print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
  entry.run(main)
