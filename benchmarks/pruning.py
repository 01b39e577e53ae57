"""The cost of pruning: complete training steps, side by side.

  python -m benchmarks.pruning

Times three steps in turn: of a dense network, of a sparse one, and of a sparse
one that prunes at its end, as one step in 100 does in the published recipe.
"""

import json

from absl import flags

from benchmarks import entry, step_variants
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.pruning import Pruning
from nfnets_tf.train.classifier import Classifier

_SPARSITY = flags.DEFINE_string("sparsity", "0.75", "A fraction, or 'n:m'.")
_STEPS = 1000
_EVERY = 100  # steps from one pruning to the next in the published recipe


def main() -> None:
  """Prints seconds per step and, last, the ratios as JSON."""
  text = _SPARSITY.value
  sparsity = text if ":" in text else float(text)

  def build(interval):
    pruning = interval and Pruning(
      sparsity, total_steps=_STEPS, begin=0.0, end=1.0, interval=interval
    )
    sparse = "live" if pruning else None
    network = NFNet(step_variants.VARIANT.value, 1000, sparse=sparse)
    return Classifier(network, pruning=pruning)

  ratios = step_variants.compare(
    {
      "dense": lambda: build(None),
      "sparse": lambda: build(1.0),
      "pruning": lambda: build(1 / _STEPS),
    }
  )
  sparse, pruning = ratios["sparse_over_dense"], ratios["pruning_over_dense"]
  ratios["mean_over_dense"] = sparse + (pruning - sparse) / _EVERY
  print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
  entry.run(main)
