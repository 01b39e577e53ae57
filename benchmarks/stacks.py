"""Times the same work under both TensorFlow stacks, a call each in turn.

  python -m benchmarks.stacks --other=PYTHON --images=FOLDER

PYTHON is an interpreter whose environment has the other stack. Only the ratios
matter: the two processes alternate, so that a machine whose speed changes
changes both.
"""

import json
import os
import statistics
import sys
import tempfile

import numpy as np
from absl import flags

from benchmarks import entry
from benchmarks.lockstep import Worker, serve
from benchmarks.timing import median_ratio, noise, seconds_side_by_side

_OTHER = flags.DEFINE_string("other", None, "Interpreter of the other stack.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEGs, for `input`.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Calls to time.")
_VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_KINDS = flags.DEFINE_list("kinds", [], "Kinds of work; all by default.")
_SERVE = flags.DEFINE_string("serve", None, "Used by the processes themselves.")
_INPUT_BATCHES = 8


def main() -> None:
  """Prints the seconds of each kind of work and, last, the ratios as JSON."""
  if _SERVE.value:
    _serve()
    return
  if not _OTHER.value:
    sys.exit("--other names no interpreter; expected one with the other stack.")
  kinds = _KINDS.value or [k for k in WORK if _IMAGES.value or k != "input"]
  pythons = {"this": sys.executable, "other": _OTHER.value}
  arguments = [a for a in sys.argv[1:] if not a.startswith("--other")]
  ratios = {}
  for kind in kinds:
    flags_of = (f"--serve={kind}", *arguments)
    workers = {
      name: Worker(python, "benchmarks.stacks", *flags_of)
      for name, python in pythons.items()
    }
    seconds = seconds_side_by_side(workers, rounds=_ROUNDS.value)
    for name, worker in workers.items():
      worker.close()
      median = statistics.median(seconds[name])
      print(f"{kind:>18} {worker.facts:>8} {1e3 * median:9.1f} ms")
    ratios[kind] = round(median_ratio(seconds["other"], seconds["this"]), 3)
  print(json.dumps({"other_over_this": ratios}))


def _serve() -> None:
  """Does one kind of work, in a process of its own."""
  import tensorflow as tf

  work = WORK[_SERVE.value]()
  work()
  serve({"work": work}, tf.__version__)


def _training(policy="float32", size=192, batch=8, sam=False):
  """Returns a function that runs one step."""
  import nfnets_tf
  from benchmarks.timing import train_steps

  nfnets_tf.keras.mixed_precision.set_global_policy(policy)
  network = nfnets_tf.NFNet(_VARIANT.value, 1000)
  model = nfnets_tf.Classifier(network, sam=nfnets_tf.SAM() if sam else None)
  model.compile(nfnets_tf.SGD(0.1))
  return train_steps(model, noise(batch, size), np.zeros([batch], np.int32))


def _serving(batch: int, **options):
  """Returns a function that classifies one batch with a SavedModel."""
  import tensorflow as tf

  import nfnets_tf

  # With a new network's 0 it would take a seventh of the time.
  network = nfnets_tf.NFNet(_VARIANT.value, 1000, skip_gain=0.5)
  model = nfnets_tf.Classifier(network)
  names = [str(number) for number in range(1000)]
  with tempfile.TemporaryDirectory() as folder:
    path = nfnets_tf.export_saved_model(
      model, os.path.join(folder, "1"), class_names=names, **options
    )
    served = tf.saved_model.load(path)
  images = tf.constant(noise(batch, 256))
  return lambda: served(images)["logits"].numpy()


def _input():
  """Returns a function that reads batches of cropped and flipped images."""
  from benchmarks import jpegs
  from nfnets_tf.data import pipeline, preprocessing

  folder = tempfile.mkdtemp()
  encoded = jpegs.read(_IMAGES.value, 256, at_least=64)
  jpegs.write_shards(folder, encoded, 16)
  split = pipeline.Split(
    directory=folder,
    split="train",
    num_classes=1,
    transforms=[
      preprocessing.InceptionCrop(image_size=224),
      preprocessing.Flip(),
    ],
  )
  batches = iter(
    split.training_batches(
      split.read_info(),
      stream=pipeline.DataStream(32, 48, 0),
      start_step=0,
      replicas=1,
    )
  )
  return lambda: [next(batches) for _ in range(_INPUT_BATCHES)]


WORK = {
  "training_float32": _training,
  "training_bfloat16": lambda: _training("mixed_bfloat16"),
  "training_sam": lambda: _training(size=128, sam=True),
  "serving_1": lambda: _serving(1),
  "serving_8": lambda: _serving(8),
  "serving_bfloat16_1": lambda: _serving(1, dtype="bfloat16"),
  "input": _input,
}

if __name__ == "__main__":
  entry.run(main)
